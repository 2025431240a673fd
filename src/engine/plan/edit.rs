//! Edits from the window: few rules, in the plan and in its text alike.
//!
//! A choice for a tensor is a rule on its exact name. Choosing again changes that rule in place, or
//! moves it to the end where a later rule would win over it. A rule that covers earlier ones
//! entirely replaces them, unless a comment in the text speaks for them.

use std::collections::HashMap;
use std::sync::Arc;

use toml_edit::{ArrayOfTables, Item, Key, Table, TableLike, Value};

use super::recipe::{ModelShape, Recipe, choose};
use super::{Calibration, LayerSet, Matcher, Method, Plan, Rule, Subject, Target, Treatment, nearest};
use crate::checkpoint::{Checkpoint, Role};
use crate::error::{Fault, Result, Stage};
use crate::format;

impl Plan {
    /// Sets what the result is written for; formats it cannot hold are refused by `resolve`.
    pub fn set_target(&mut self, target: Target) {
        self.target = target;
        set_value(self.document.as_table_mut(), "target", target.name());
    }

    /// Sets the fingerprint of the checkpoint that the plan is made for.
    pub fn set_checkpoint(&mut self, fingerprint: Option<&str>) {
        self.checkpoint = fingerprint.map(str::to_owned);
        match fingerprint {
            Some(fingerprint) => set_value(self.document.as_table_mut(), "checkpoint", fingerprint),
            None => drop(self.document.remove("checkpoint")),
        }
    }

    /// Sets or removes the recipe that rules build on; a recipe replaces the default format, and either
    /// replaces what the planner chose.
    pub fn set_recipe(&mut self, recipe: Option<Recipe>) {
        self.drop_planned();
        self.recipe = recipe;
        match recipe {
            Some(recipe) => {
                set_value(self.document.as_table_mut(), "recipe", recipe.name());
                self.remove_default();
            }
            None => drop(self.document.remove("recipe")),
        }
    }

    /// Sets or removes the format of tensors that no rule matches; it replaces the recipe and what the
    /// planner chose.
    ///
    /// # Errors
    /// The format does not exist.
    pub fn set_default_format(&mut self, format_id: Option<&str>) -> Result<()> {
        let Some(id) = format_id else {
            self.remove_default();
            return Ok(());
        };
        let Treatment::Format { format, .. } = Treatment::format(id)? else { return Ok(()) };
        self.drop_planned();
        self.recipe = None;
        self.document.remove("recipe");
        let root = self.document.as_table_mut();
        let default = root.entry("default").or_insert_with(|| Item::Table(Table::new()));
        let mut method = None;
        if let Some(table) = default.as_table_like_mut() {
            set_value(table, "format", format);
            // A method that was asked for by name stays beside the new format.
            method = table.get("method").and_then(Item::as_str).and_then(Method::find);
        }
        self.default = Some(Treatment::Format { format, method });
        Ok(())
    }

    /// Sets or removes where the importance matrix comes from.
    pub fn set_calibration(&mut self, calibration: Option<Calibration>) {
        match &calibration {
            Some(calibration) => drop(self.document.insert("calibration", calibration.to_item())),
            None => drop(self.document.remove("calibration")),
        }
        self.calibration = calibration;
    }

    fn remove_default(&mut self) {
        self.default = None;
        let Some(table) = self.document.get_mut("default").and_then(Item::as_table_like_mut) else {
            return;
        };
        table.remove("format");
        table.remove("method");
        if table.is_empty() {
            self.document.remove("default");
        }
    }

    /// Stores single tensors in a format.
    ///
    /// # Errors
    /// A name that the checkpoint does not have, a format that does not exist; the plan is unchanged.
    pub fn set_format(&mut self, checkpoint: &Checkpoint, names: &[impl AsRef<str>], format_id: &str) -> Result<()> {
        self.set_exact(Subject::of(checkpoint), names, Treatment::format(format_id)?)
    }

    /// Protects single tensors, or lifts their protection: then they are what they would be without.
    ///
    /// # Errors
    /// A name that the checkpoint does not have; the plan is unchanged.
    pub fn set_protected(&mut self, checkpoint: &Checkpoint, names: &[impl AsRef<str>], protect: bool) -> Result<()> {
        let subject = Subject::of(checkpoint);
        if protect { self.set_exact(subject, names, Treatment::Protect) } else { self.unprotect_for(subject, names) }
    }

    /// Removes the rules that are about nothing but these tensors; wider rules stay.
    ///
    /// # Errors
    /// A name that the checkpoint does not have; the plan is unchanged.
    pub fn clear(&mut self, checkpoint: &Checkpoint, names: &[impl AsRef<str>]) -> Result<()> {
        self.clear_for(Subject::of(checkpoint), names)
    }

    /// Stores or protects all tensors of a role, in all layers or in some.
    ///
    /// # Errors
    /// The checkpoint has no such tensors; the plan is unchanged.
    pub fn set_role_layers(
        &mut self,
        checkpoint: &Checkpoint,
        role: Role,
        layers: Option<&[usize]>,
        treatment: Treatment,
    ) -> Result<()> {
        self.set_role_for(Subject::of(checkpoint), role, layers, treatment)
    }

    /// Stores or protects all tensors whose Hugging Face names a glob matches.
    ///
    /// # Errors
    /// The glob cannot be read or matches nothing; the plan is unchanged.
    pub fn set_glob(&mut self, checkpoint: &Checkpoint, glob: &str, treatment: Treatment) -> Result<()> {
        self.set_glob_for(Subject::of(checkpoint), glob, treatment)
    }

    /// Removes the rule with this index, if there is one.
    pub fn remove_rule(&mut self, index: usize) {
        if index < self.rules.len() {
            self.rules.remove(index);
            drop(self.take_table(index));
        }
    }

    /// Replaces recipe, default format and planned rules by the planner's answer. Rules made by hand
    /// stay behind the planned ones, so that they win; comments above planned rules stay too.
    pub(super) fn set_planned(&mut self, default_format: &'static str, planned: Vec<Rule>) -> Result<()> {
        let comments = self.remove_planned();
        self.set_default_format(Some(default_format))?;
        let mut by_hand: Vec<Table> = (0..self.rules.len()).rev().filter_map(|rule| self.take_table(rule)).collect();
        by_hand.reverse();
        let mut tables: Vec<Table> = planned.iter().map(table_of).chain(by_hand).collect();
        if let Some(first) = tables.first_mut() {
            add_comments(first, &comments);
        }
        for table in tables {
            self.push_table(table);
        }
        self.rules.splice(0..0, planned);
        Ok(())
    }

    /// The plan without what the planner chose, on a base of `format` where it has one.
    pub(super) fn freed_for(&self, format: &str) -> Result<Self> {
        let mut plan = self.clone();
        plan.drop_planned();
        if plan.default.is_some() || plan.recipe.is_some() {
            plan.set_recipe(None);
            plan.set_default_format(Some(format).filter(|id| !id.is_empty()))?;
        }
        Ok(plan)
    }

    /// Removes all planned rules and returns the comments that stood above them, a line each.
    fn remove_planned(&mut self) -> String {
        let mut comments = String::new();
        for rule in (0..self.rules.len()).rev().filter(|&rule| self.rules[rule].is_planned).collect::<Vec<_>>() {
            self.rules.remove(rule);
            let Some(table) = self.take_table(rule) else { continue };
            let prefix = table.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
            let lines = prefix.lines().filter(|line| line.trim_start().starts_with('#'));
            comments = lines.map(|line| format!("{line}\n")).collect::<String>() + &comments;
        }
        comments
    }

    /// Removes all planned rules, because something else takes their place as the plan's base.
    fn drop_planned(&mut self) {
        let comments = self.remove_planned();
        if !comments.is_empty()
            && let Some(first) = self.rule_tables().get_mut(0)
        {
            add_comments(first, &comments);
        }
        if self.rules.is_empty() {
            self.document.remove("rule");
        }
    }

    pub(super) fn set_glob_for(&mut self, subject: Subject<'_>, glob: &str, treatment: Treatment) -> Result<()> {
        let matcher = Matcher::new(Some(glob), None, None).map_err(|reason| {
            Fault::new(Stage::Plan, format!("the glob {glob} cannot be read: {reason}"))
                .fix("use *, ?, [abc] and {a,b}")
        })?;
        if matcher.matched(subject).is_empty() {
            return Err(unknown_tensor(subject, glob).into());
        }
        self.set(subject, matcher, treatment);
        Ok(())
    }

    pub(super) fn set_role_for(
        &mut self,
        subject: Subject<'_>,
        role: Role,
        layers: Option<&[usize]>,
        treatment: Treatment,
    ) -> Result<()> {
        let matcher = Matcher::of_role(role, layers.and_then(LayerSet::of));
        let beyond = matcher.layers().is_some_and(|layers| layers.last() >= subject.layer_count());
        if beyond || matcher.matched(subject).is_empty() {
            let fault = Fault::new(Stage::Plan, format!("the checkpoint has no tensors of {matcher}"));
            return Err(fault.fix("choose another role or other layers").into());
        }
        self.set(subject, matcher, treatment);
        Ok(())
    }

    pub(super) fn set_exact(
        &mut self,
        subject: Subject<'_>,
        names: &[impl AsRef<str>],
        treatment: Treatment,
    ) -> Result<()> {
        for (name, index) in names.iter().zip(indices(subject, names)?) {
            self.set_one(subject, name.as_ref(), index, treatment);
        }
        Ok(())
    }

    fn set_one(&mut self, subject: Subject<'_>, name: &str, index: usize, treatment: Treatment) {
        let matcher = Matcher::exact(name);
        matcher.remember(subject, &Arc::from([index]));
        self.set(subject, matcher, treatment);
    }

    pub(super) fn unprotect_for(&mut self, subject: Subject<'_>, names: &[impl AsRef<str>]) -> Result<()> {
        let tensors = indices(subject, names)?;
        let shapes: Vec<_> = subject.tensors.iter().map(super::resolve::shape_of).collect();
        let base =
            self.recipe.map(|recipe| choose(recipe, ModelShape::of(subject), self.calibration.is_some(), &shapes));
        for (name, tensor) in names.iter().zip(tensors) {
            let exact = Matcher::exact(name.as_ref());
            let own = |rule: &Rule| rule.matcher == exact && rule.treatment == Treatment::Protect;
            while let Some(rule) = self.rules.iter().rposition(own) {
                self.remove_rule(rule);
            }
            let matching = |rule: &&Rule| rule.matcher.matched(subject).binary_search(&tensor).is_ok();
            if self.rules.iter().rev().find(matching).map(|rule| rule.treatment) != Some(Treatment::Protect) {
                continue;
            }
            // A wider rule still protects it: say in a rule of its own what it would be without.
            let mut formats = self.rules.iter().rev().filter(matching).map(|rule| rule.treatment);
            let from_recipe = || base.as_ref().and_then(|base| base[tensor]);
            let stored = || format::of_dtype(subject.tensors[tensor].dtype).map(|format| format.id());
            let treatment = formats.find(|treatment| *treatment != Treatment::Protect).or(self.default).or_else(|| {
                let id = from_recipe().or_else(stored).unwrap_or("f32");
                Treatment::format(id).ok()
            });
            if let Some(treatment) = treatment {
                self.set_one(subject, name.as_ref(), tensor, treatment);
            }
        }
        Ok(())
    }

    pub(super) fn clear_for(&mut self, subject: Subject<'_>, names: &[impl AsRef<str>]) -> Result<()> {
        let mut is_named = vec![false; subject.tensors.len()];
        for index in indices(subject, names)? {
            is_named[index] = true;
        }
        for rule in (0..self.rules.len()).rev() {
            let matched = self.rules[rule].matcher.matched(subject);
            if !matched.is_empty() && matched.iter().all(|&tensor| is_named[tensor]) {
                self.remove_rule(rule);
            }
        }
        Ok(())
    }

    /// Makes `treatment` the choice for all that `matcher` matches, with as few rules as possible.
    fn set(&mut self, subject: Subject<'_>, matcher: Matcher, treatment: Treatment) {
        let matched = matcher.matched(subject);
        match self.rules.iter().rposition(|rule| rule.matcher == matcher) {
            Some(same) => {
                let interferes = |rule: &Rule| overlaps(&rule.matcher.matched(subject), &matched);
                self.rules[same].treatment = treatment;
                self.rules[same].is_planned = false;
                if let Some(table) = self.rule_tables().get_mut(same) {
                    table.remove("planned");
                    write_treatment(table, treatment);
                }
                if self.rules[same + 1..].iter().any(interferes) {
                    let rule = self.rules.remove(same);
                    self.rules.push(rule);
                    if let Some(table) = self.take_table(same) {
                        self.push_table(table);
                    }
                }
            }
            None => {
                let rule = Rule { matcher: matcher.clone(), treatment, is_planned: false };
                self.push_table(table_of(&rule));
                self.rules.push(rule);
            }
        }
        self.remove_covered(subject, &matcher, &matched);
    }

    /// Removes rules before the one with `matcher` that match nothing beyond it.
    fn remove_covered(&mut self, subject: Subject<'_>, matcher: &Matcher, matched: &[usize]) {
        let Some(mut last) = self.rules.iter().rposition(|rule| rule.matcher == *matcher) else {
            return;
        };
        let mut index = 0;
        while index < last {
            let earlier = self.rules[index].matcher.matched(subject);
            let is_covered = !earlier.is_empty() && earlier.iter().all(|tensor| matched.binary_search(tensor).is_ok());
            if is_covered && !self.has_comment(index) {
                self.remove_rule(index);
                last -= 1;
            } else {
                index += 1;
            }
        }
    }

    fn has_comment(&self, rule: usize) -> bool {
        let tables = self.document.get("rule").and_then(Item::as_array_of_tables);
        tables.and_then(|tables| tables.get(rule)).is_some_and(|table| {
            // Names may hold a "#" as well; then a covered rule stays, which does no harm.
            let prefix = table.decor().prefix().and_then(|prefix| prefix.as_str());
            prefix.is_some_and(|prefix| prefix.contains('#')) || table.to_string().contains('#')
        })
    }

    /// The rules' tables in the text.
    pub(super) fn rule_tables(&mut self) -> &mut ArrayOfTables {
        let root = self.document.as_table_mut();
        let item = root.entry("rule").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
        if item.as_array_of_tables().is_none() {
            *item = Item::ArrayOfTables(ArrayOfTables::new());
        }
        item.as_array_of_tables_mut().expect("made one above")
    }

    fn take_table(&mut self, index: usize) -> Option<Table> {
        let tables = self.rule_tables();
        let table = (index < tables.len()).then(|| tables.remove(index));
        if tables.is_empty() {
            self.document.remove("rule");
        }
        table
    }

    fn push_table(&mut self, mut table: Table) {
        // Without a position of its own the table is written after its predecessor.
        table.set_position(None);
        let prefix = table.decor().prefix().and_then(|prefix| prefix.as_str()).map(str::to_owned);
        if let Some(prefix) = prefix
            && !prefix.starts_with(['\n', '\r'])
        {
            table.decor_mut().set_prefix(format!("\n{prefix}"));
        }
        self.rule_tables().push(table);
    }
}

/// Puts comment lines above a rule and what already stands there.
fn add_comments(table: &mut Table, comments: &str) {
    if !comments.is_empty() {
        let own = table.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or("\n").to_owned();
        table.decor_mut().set_prefix(format!("\n{comments}{}", own.trim_start_matches('\n')));
    }
}

/// A rule as text.
fn table_of(rule: &Rule) -> Table {
    let mut table = Table::new();
    if let Some(glob) = rule.matcher.glob() {
        set_value(&mut table, "match", glob);
    }
    if let Some(role) = rule.matcher.role() {
        set_value(&mut table, "role", role.name());
    }
    if let Some(layers) = rule.matcher.layers() {
        set_value(&mut table, "layers", layers.to_string());
    }
    write_treatment(&mut table, rule.treatment);
    if rule.is_planned {
        set_value(&mut table, "planned", true);
    }
    table
}

/// Indices of the tensors called `names`.
fn indices(subject: Subject<'_>, names: &[impl AsRef<str>]) -> Result<Vec<usize>> {
    let tensors = subject.tensors.iter().enumerate();
    let by_name: HashMap<&str, usize> = tensors.map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
    let find = |name: &str| by_name.get(name).copied().ok_or_else(|| unknown_tensor(subject, name));
    names.iter().map(|name| Ok(find(name.as_ref())?)).collect()
}

/// The fault for a name or glob that no tensor has, with the nearest that one has.
fn unknown_tensor(subject: Subject<'_>, name: &str) -> Fault {
    // Enough names for a good guess, few enough for an answer at once.
    let known: Vec<&str> = subject.tensors.iter().take(3000).map(|tensor| tensor.name.as_str()).collect();
    let fault = Fault::new(Stage::Plan, format!("the checkpoint has no tensor {name}"));
    fault.fix(
        nearest::nearest(name, &known)
            .map_or_else(|| "open another checkpoint".to_owned(), |nearest| format!("the nearest is {nearest}")),
    )
}

/// True if two rising lists share an element.
fn overlaps(a: &[usize], b: &[usize]) -> bool {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    short.iter().any(|index| long.binary_search(index).is_ok())
}

/// Sets a value and keeps the spaces and comments around an old one.
pub(super) fn set_value(table: &mut dyn TableLike, key: &str, value: impl Into<Value>) {
    let mut value = value.into();
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => drop(table.insert(key, Item::Value(value))),
    }
}

/// Writes what a rule does; a comment at the old key moves to the new one.
pub(super) fn write_treatment(table: &mut Table, treatment: Treatment) {
    match treatment {
        Treatment::Protect => {
            table.remove("method");
            replace_key(table, "format", "protect", true.into());
        }
        Treatment::Format { format, method } => {
            replace_key(table, "protect", "format", format.into());
            match method {
                Some(method) => set_value(table, "method", method.name()),
                None => drop(table.remove("method")),
            }
        }
    }
}

fn replace_key(table: &mut Table, old: &str, new: &str, mut value: Value) {
    match table.remove_entry(old) {
        Some((key, item)) => {
            if let Some(old) = item.as_value() {
                *value.decor_mut() = old.decor().clone();
            }
            let key = Key::new(new).with_leaf_decor(key.leaf_decor().clone());
            table.insert_formatted(&key, Item::Value(value));
        }
        None => set_value(table, new, value),
    }
}
