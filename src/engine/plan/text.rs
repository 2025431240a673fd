//! Plans as TOML: reading with a line for every complaint, and writing back what was read.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, Key, Table, TableLike};

use super::calibration::{self, Calibration};
use super::constraints::{self, Constraints};
use super::matcher::{LayerSet, Matcher};
use super::nearest;
use super::recipe::Recipe;
use super::{Method, Plan, Rule, Target, Ties, Treatment, VERSION, unknown_format};
use crate::calibration::ImportanceOptions;
use crate::checkpoint::Role;
use crate::error::{Fault, Result, Stage};

/// Longer files are no plans.
const MOST_BYTES: usize = 16 << 20;

const ROOT_KEYS: [&str; 11] = [
    "version",
    "checkpoint",
    "target",
    "recipe",
    "search",
    "default",
    "rule",
    "calibration",
    "constraints",
    "ties",
    "prune",
];
const DEFAULT_KEYS: [&str; 2] = ["format", "method"];
const RULE_KEYS: [&str; 7] = ["match", "role", "layers", "format", "method", "protect", "planned"];

/// A string of the plan and where it stands.
type Spanned<'t> = (&'t str, Option<Range<usize>>);

/// The plan's text while it is read; turns byte ranges into lines.
pub(super) struct Source<'a> {
    text: &'a str,
    path: Option<&'a Path>,
}

impl Source<'_> {
    fn line(&self, span: Option<Range<usize>>) -> usize {
        let end = span.map_or(0, |span| span.start).min(self.text.len());
        1 + self.text.as_bytes()[..end].iter().filter(|&&byte| byte == b'\n').count()
    }

    /// Puts line and file to a fault.
    fn place(&self, fault: Fault, span: Option<Range<usize>>) -> Fault {
        let fault = fault.at(format!("line {}", self.line(span)));
        match self.path {
            Some(path) => fault.file(path),
            None => fault,
        }
    }

    /// A file named in the plan, which lies beside it unless its path says otherwise.
    pub(super) fn beside(&self, path: &str) -> PathBuf {
        match self.path.and_then(Path::parent) {
            Some(folder) => folder.join(path),
            None => path.into(),
        }
    }

    pub(super) fn fault(&self, span: Option<Range<usize>>, cause: impl Into<String>) -> Fault {
        self.place(Fault::new(Stage::Plan, cause), span)
    }

    /// Refuses keys that are not in `known`.
    pub(super) fn check_keys(&self, table: &dyn TableLike, known: &[&str], place: &str) -> Result<()> {
        for (name, _) in table.iter() {
            if known.contains(&name) {
                continue;
            }
            let span = table.key(name).and_then(Key::span);
            let fault = self.fault(span, format!("there is no key \"{name}\"{place}"));
            return Err(fault.fix(nearest::advice(name, known)).into());
        }
        Ok(())
    }

    /// A string, if the key is there.
    pub(super) fn text<'t>(&self, table: &'t dyn TableLike, key: &str) -> Result<Option<Spanned<'t>>> {
        let Some(item) = table.get(key) else {
            return Ok(None);
        };
        match item.as_str() {
            Some(text) => Ok(Some((text, item.span()))),
            None => {
                let span = item.span().or_else(|| table.key(key).and_then(Key::span));
                let fault = self.fault(span, format!("\"{key}\" is {}, not a string", kind(item)));
                Err(fault.fix(format!("write {key} = \"…\"")).into())
            }
        }
    }

    /// A word of a fixed list, found by `find`.
    fn word<T>(
        &self,
        table: &dyn TableLike,
        key: &str,
        legal: &[&str],
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some((text, span)) = self.text(table, key)? else {
            return Ok(None);
        };
        match find(text) {
            Some(found) => Ok(Some(found)),
            None => {
                let fault = self.fault(span, format!("there is no {key} \"{text}\""));
                Err(fault.fix(nearest::advice(text, legal)).into())
            }
        }
    }

    /// `format` and `method` of a rule or of the default.
    fn format(&self, table: &dyn TableLike) -> Result<Option<Treatment>> {
        let methods: Vec<&str> = Method::ALL.iter().map(|method| method.name()).collect();
        let method = self.word(table, "method", &methods, Method::find)?;
        let Some((text, span)) = self.text(table, "format")? else {
            return Ok(None);
        };
        match crate::format::find(text) {
            Some(found) => Ok(Some(Treatment::Format { format: found.id(), method })),
            None => Err(self.place(unknown_format(text), span).into()),
        }
    }

    fn calibration(&self, item: &Item) -> Result<Calibration> {
        let table = item.as_table_like().ok_or_else(|| {
            let fault = self.fault(item.span(), format!("\"calibration\" is {}, not a table", kind(item)));
            fault.fix("write [calibration] and below it imatrix = \"…\"")
        })?;
        self.check_keys(table, &calibration::KEYS, " in [calibration]")?;
        let text = |key: &str| -> Result<Option<String>> { Ok(self.text(table, key)?.map(|found| found.0.to_owned())) };
        let span = |key: &str| table.get(key).and_then(Item::span);
        let context = calibration::positive(table, "context")
            .map_err(|cause| self.fault(span("context"), cause).fix("write context = 512"))?;
        let process_output = match table.get("process_output").map(Item::as_bool) {
            None => false,
            Some(Some(process_output)) => process_output,
            Some(None) => {
                let fault = self.fault(span("process_output"), "\"process_output\" is neither true nor false");
                return Err(fault.fix("write process_output = true").into());
            }
        };
        let found = Calibration {
            imatrix: text("imatrix")?.map(Into::into),
            imatrix_hash: text("imatrix_hash")?,
            text: text("text")?.map(Into::into),
            text_hash: text("text_hash")?,
            options: ImportanceOptions { context, process_output, max_chunks: None },
        };
        if found.imatrix.is_none() && found.text.is_none() {
            let fault = self.fault(item.span(), "[calibration] names neither an importance matrix nor a text");
            return Err(fault.fix("add imatrix = \"…\", or text = \"…\" to compute it on").into());
        }
        Ok(found.beside(self.path))
    }

    fn constraints(&self, item: &Item) -> Result<Constraints> {
        let table = item.as_table_like().ok_or_else(|| {
            let fault = self.fault(item.span(), format!("\"constraints\" is {}, not a table", kind(item)));
            fault.fix("write [constraints] and below it max_file_size = \"…\"")
        })?;
        self.check_keys(table, &constraints::KEYS, " in [constraints]")?;
        Ok(Constraints::read(table).map_err(|wrong| self.fault(wrong.span, wrong.cause).fix(wrong.remedy))?)
    }

    fn ties(&self, item: &Item) -> Result<Vec<(Target, Ties)>> {
        let table = item.as_table_like().ok_or_else(|| {
            let fault = self.fault(item.span(), format!("\"ties\" is {}, not a table", kind(item)));
            fault.fix("write [ties] and below it gguf = \"none\"")
        })?;
        self.check_keys(table, &Target::ALL.map(Target::name), " in [ties]")?;
        let mut ties = Vec::new();
        for target in Target::ALL {
            let found = self.word(table, target.name(), &Ties::NAMES, Ties::find)?;
            ties.extend(found.map(|found| (target, found)));
        }
        Ok(ties)
    }

    /// A key that is true or not there; `remedy` is for one that is false.
    fn flag(&self, table: &Table, key: &str, remedy: &str) -> Result<bool> {
        let Some(item) = table.get(key) else {
            return Ok(false);
        };
        match item.as_bool() {
            Some(true) => Ok(true),
            Some(false) => Err(self.fault(item.span(), format!("{key} = false says nothing")).fix(remedy).into()),
            None => {
                let fault = self.fault(item.span(), format!("\"{key}\" is {}, not true", kind(item)));
                Err(fault.fix(format!("write {key} = true")).into())
            }
        }
    }

    fn rule(&self, table: &Table) -> Result<Rule> {
        self.check_keys(table, &RULE_KEYS, " in a rule")?;
        let glob = self.text(table, "match")?;
        let roles: Vec<&str> = Role::ALL.iter().map(|role| role.name()).collect();
        let role = self.word(table, "role", &roles, Role::find)?;
        let layers = match self.text(table, "layers")? {
            None => None,
            Some((text, span)) => Some(LayerSet::parse(text).map_err(|reason| {
                self.fault(span, reason).fix("write layers as \"3-5\" or \"0,2,4-6\", counted from 0")
            })?),
        };
        if glob.is_none() && role.is_none() && layers.is_none() {
            let fault = self.fault(table.span(), "the rule does not say which tensors it is about");
            return Err(fault.fix("add match = \"…\", role = \"…\" or layers = \"…\"").into());
        }
        let matcher = Matcher::new(glob.as_ref().map(|glob| glob.0), role, layers).map_err(|reason| {
            let span = glob.as_ref().and_then(|glob| glob.1.clone());
            self.fault(span, format!("the glob cannot be read: {reason}"))
                .fix("use *, ?, [abc] and {a,b}; a backslash takes a special character as it is")
        })?;
        let protect = self.flag(table, "protect", "remove it and name a format")?;
        let is_planned = self.flag(table, "planned", "remove it")?;
        if protect && is_planned {
            let fault = self.fault(table.span(), "the planner does not protect");
            return Err(fault.fix("remove planned = true").into());
        }
        let treatment = match (self.format(table)?, protect) {
            (Some(format), false) => format,
            (None, true) if table.get("method").is_none() => Treatment::Protect,
            (_, true) => {
                let fault = self.fault(table.span(), "a protected tensor keeps its stored values and has no format");
                return Err(fault.fix("remove either protect or format and method").into());
            }
            (None, false) => {
                let fault = self.fault(table.span(), "the rule does not say what to do");
                return Err(fault.fix("add format = \"…\" or protect = true").into());
            }
        };
        Ok(Rule { matcher, treatment, is_planned })
    }
}

/// A TOML item's type with its article.
pub(super) fn kind(item: &Item) -> String {
    let name = item.type_name();
    let article = if name.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {name}")
}

impl Plan {
    /// Reads a plan; `path` is named in errors only.
    ///
    /// # Errors
    /// TOML that cannot be read, keys and words that do not exist, or parts that this version
    /// does not have: each with its line and the nearest legal choice.
    pub fn parse(text: &str, path: Option<&Path>) -> Result<Self> {
        let source = Source { text, path };
        if text.len() > MOST_BYTES {
            return Err(source.fault(None, "the file is too long to be a plan").fix("choose another file").into());
        }
        let document = Document::parse(text).map_err(|err| {
            let reason = err.message().lines().next().unwrap_or("unreadable").to_owned();
            source.fault(err.span(), format!("not TOML: {reason}")).fix("correct the line")
        })?;
        let root = document.as_table();
        source.check_keys(root, &ROOT_KEYS, "")?;

        let version = root.get("version");
        match version.map(Item::as_integer) {
            Some(Some(VERSION)) => {}
            Some(Some(number)) => {
                let fault = source.fault(
                    version.and_then(Item::span),
                    format!("the plan has version {number}; this program reads version {VERSION}"),
                );
                return Err(fault.fix("use the version of the program that wrote it").into());
            }
            Some(None) => {
                let fault = source.fault(version.and_then(Item::span), "\"version\" is not a whole number");
                return Err(fault.fix(format!("write version = {VERSION}")).into());
            }
            None => {
                let fault = source.fault(None, "the plan does not say its version");
                return Err(fault.fix(format!("add version = {VERSION} as the first line")).into());
            }
        }

        let checkpoint = source.text(root, "checkpoint")?.map(|found| found.0.to_owned());
        let targets: Vec<&str> = Target::ALL.iter().map(|target| target.name()).collect();
        let target = source.word(root, "target", &targets, Target::find)?.unwrap_or(Target::Gguf);
        let recipes: Vec<&str> = Recipe::all().map(Recipe::name).collect();
        let recipe = source.word(root, "recipe", &recipes, Recipe::find)?;

        let default = match root.get("default") {
            None => None,
            Some(item) => {
                let table = item.as_table_like().ok_or_else(|| {
                    let fault = source.fault(item.span(), format!("\"default\" is {}, not a table", kind(item)));
                    fault.fix("write [default] and below it format = \"…\"")
                })?;
                source.check_keys(table, &DEFAULT_KEYS, " in [default]")?;
                let default = source.format(table)?;
                if default.is_some() && recipe.is_some() {
                    let span = table.key("format").and_then(Key::span);
                    let fault = source.fault(span, "recipe and default format both decide every tensor");
                    return Err(fault.fix("remove one of the two").into());
                }
                default
            }
        };

        let mut rules = Vec::new();
        if let Some(item) = root.get("rule") {
            let tables = item.as_array_of_tables().ok_or_else(|| {
                let span = root.key("rule").and_then(Key::span).or_else(|| item.span());
                source.fault(span, "rules are a list of tables").fix("start every rule with a line [[rule]]")
            })?;
            for table in tables.iter() {
                rules.push(source.rule(table)?);
            }
        }
        let calibration = root.get("calibration").map(|item| source.calibration(item)).transpose()?;
        let constraints = root.get("constraints").map(|item| source.constraints(item)).transpose()?.unwrap_or_default();
        let ties = root.get("ties").map(|item| source.ties(item)).transpose()?.unwrap_or_default();
        let search = source.word(root, "search", &super::Search::NAMES, super::Search::find)?.unwrap_or_default();
        let prune = root.get("prune").map(|item| source.prune(item)).transpose()?.unwrap_or_default();
        let path = path.map(Path::to_owned);
        let document = document.into_mut();
        Ok(Self {
            checkpoint,
            target,
            recipe,
            default,
            rules,
            calibration,
            constraints,
            ties,
            prune,
            search,
            document,
            path,
        })
    }

    /// The plan as text: what was read, with edits in their places and comments kept.
    pub fn to_toml(&self) -> String {
        self.document.to_string()
    }

    /// A fault about a rule, with the line of [`Plan::to_toml`] at which the rule starts.
    pub(super) fn rule_fault(&self, rule: usize, key: &str, cause: impl Into<String>) -> Fault {
        self.fault_at(cause, |root| {
            let table = root.get("rule")?.as_array_of_tables()?.get(rule)?;
            table.get(key).and_then(Item::span).or_else(|| table.span())
        })
    }

    /// A fault about the recipe or the default format, with its line.
    pub(super) fn base_fault(&self, cause: impl Into<String>) -> Fault {
        self.fault_at(cause, |root| {
            let format = || root.get("default")?.as_table_like()?.get("format")?.span();
            root.get("recipe").and_then(Item::span).or_else(format)
        })
    }

    /// Lines are looked up in the text as it is now, and only when something is wrong.
    pub(super) fn fault_at(
        &self,
        cause: impl Into<String>,
        find: impl FnOnce(&Table) -> Option<Range<usize>>,
    ) -> Fault {
        let text = self.to_toml();
        let span = Document::parse(text.as_str()).ok().and_then(|document| find(document.as_table()));
        Source { text: &text, path: self.path.as_deref() }.fault(span, cause)
    }
}
