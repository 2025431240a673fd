//! Proves the shape of the source: which layer may use which, and the rules that every file keeps.
//!
//! The checks read the source as text, with comments, strings and test modules taken out. Each has
//! a test below that shows it a snippet which breaks the rule.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Longest file, in lines.
const MAX_LINES: usize = 800;

/// Folders and files that may hold `unsafe`, each with its `SAFETY:` note: kernels, and the mapping of files.
const UNSAFE_PLACES: [&str; 2] = ["src/engine/kernels/", "src/engine/checkpoint/mapping.rs"];

/// Crates of the window, which the engine must not know.
const WINDOW_CRATES: [&str; 9] =
    ["egui", "eframe", "egui_plot", "egui_extras", "egui_kittest", "winit", "rfd", "epaint", "resvg"];

/// One source file.
struct Source {
    /// Path from the package's root, with `/`.
    path: String,
    text: String,
}

/// A token of cleaned source: an identifier, `::`, or another character.
type Token = String;

#[test]
fn every_file_keeps_every_rule() {
    let sources = read_sources();
    assert!(sources.len() > 20, "the sources were found: {}", sources.len());
    let order: Vec<String> = ["src/engine/numerics.rs", "src/engine/mod.rs"]
        .iter()
        .flat_map(|path| engine_order(&std::fs::read_to_string(root().join(path)).expect("a list of modules")))
        .collect();
    assert!(order.len() > 10, "the engine's modules were found: {order:?}");
    let mut report = String::new();
    for source in &sources {
        for fault in check(source, &order) {
            writeln!(report, "{}: {fault}", source.path).expect("a string grows");
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn without_default_features_no_window_is_in_the_tree() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = std::process::Command::new(cargo)
        .args(["tree", "-e", "normal", "--no-default-features", "--prefix", "none", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(tree.lines().any(|line| line.starts_with("rayon ")), "the tree was read: {tree}");
    let found = window_crates_of(&tree);
    assert!(found.is_empty(), "{found:?}");
}

/// Lines of `cargo tree` that name a crate of the window.
fn window_crates_of(tree: &str) -> Vec<&str> {
    tree.lines()
        .filter(|line| {
            line.split(' ').next().is_some_and(|name| WINDOW_CRATES.contains(&name.replace('-', "_").as_str()))
        })
        .collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read_sources() -> Vec<Source> {
    let mut folders = vec![root().join("src")];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
        .into_iter()
        .map(|path| Source {
            text: std::fs::read_to_string(&path).expect("UTF-8 source"),
            path: path
                .strip_prefix(root())
                .expect("below the root")
                .components()
                .map(|part| part.as_os_str().to_string_lossy())
                .collect::<Vec<_>>()
                .join("/"),
        })
        .collect()
}

/// Names of the modules that the root of a crate of the engine lists, in its order.
fn engine_order(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'));
    names.map(str::to_owned).collect()
}

/// Everything that is wrong with one file.
fn check(source: &Source, engine_order: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let path = source.path.as_str();
    if !source.text.starts_with("//!") {
        faults.push("does not open with a module doc".to_owned());
    }
    let line_count = source.text.lines().count();
    if line_count > MAX_LINES {
        faults.push(format!("has {line_count} lines, more than {MAX_LINES}"));
    }
    let all_code = strip_comments_and_strings(&source.text);
    check_unsafe(path, &source.text, &all_code, &mut faults);
    let is_test_file = path.ends_with("tests.rs") || path.contains("/tests/");
    if is_test_file {
        return faults;
    }
    let code = strip_tests(&all_code);
    let tokens = tokenize(&code);
    check_layers(path, &tokens, engine_order, &mut faults);
    check_calls(&tokens, &mut faults);
    check_colours(path, &tokens, &mut faults);
    faults
}

fn check_unsafe(path: &str, text: &str, code: &str, faults: &mut Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in code.lines().enumerate() {
        if !tokenize(line).iter().any(|token| token == "unsafe") {
            continue;
        }
        if !UNSAFE_PLACES.iter().any(|place| path.starts_with(place)) {
            faults.push(format!("line {}: unsafe outside of {}", index + 1, UNSAFE_PLACES.join(", ")));
        }
        // A declaration takes over a contract that its file states once: the trait it implements has it.
        let declares = tokenize(line).windows(2).any(|pair| pair[0] == "unsafe" && pair[1] == "fn");
        if declares && text.contains("# Safety\n") {
            continue;
        }
        let near = &lines[index.saturating_sub(8)..=index];
        if !near.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
            faults.push(format!("line {}: unsafe without a SAFETY: note", index + 1));
        }
    }
}

fn check_layers(path: &str, tokens: &[Token], engine_order: &[String], faults: &mut Vec<String>) {
    let module = module_of(path);
    let forbidden: &[&str] = match module.first().map(String::as_str) {
        Some("engine") => &["workbench", "app", "cli"],
        Some("workbench") => &["app", "cli"],
        Some("app") => &["cli"],
        Some("cli") => &["app"],
        _ => &[],
    };
    let is_engine = module.first().is_some_and(|first| first == "engine");
    if is_engine || module.first().is_some_and(|first| first == "workbench") {
        for name in WINDOW_CRATES {
            if tokens.iter().any(|token| token == name) {
                faults.push(format!("names {name}, which only the window may know"));
            }
        }
    }
    let position = |name: &str| engine_order.iter().position(|known| known == name);
    for used in paths_used(tokens, &module) {
        let Some(first) = used.first() else {
            continue;
        };
        if forbidden.contains(&first.as_str()) {
            faults.push(format!("uses {}, a layer that it must not know", used.join("::")));
        }
        if is_engine
            && first == "engine"
            && let (Some(own), Some(other)) = (module.get(1), used.get(1))
            && let (Some(own), Some(other)) = (position(own), position(other))
            && other > own
        {
            faults.push(format!("uses {}, which comes after it in engine/mod.rs", used.join("::")));
        }
    }
}

fn check_calls(tokens: &[Token], faults: &mut Vec<String>) {
    let follows = |at: usize, words: &[&str]| {
        words.iter().enumerate().all(|(step, word)| tokens.get(at + step).is_some_and(|token| token == word))
    };
    for at in 0..tokens.len() {
        if follows(at, &[".", "unwrap", "("]) {
            faults.push("calls unwrap outside of tests".to_owned());
        }
        if follows(at, &["thread", "::", "spawn"]) {
            faults.push("spawns a thread without a name".to_owned());
        }
        if follows(at, &["Builder", "::", "new", "("]) && at >= 2 && tokens[at - 2] == "thread" {
            let named = tokens[at..tokens.len().min(at + 60)].iter().any(|token| token == "name");
            if !named {
                faults.push("builds a thread without a name".to_owned());
            }
        }
        if tokens[at] == "unbounded" || follows(at, &["mpsc", "::", "channel"]) {
            faults.push("makes an unbounded channel".to_owned());
        }
        if ["todo", "unimplemented", "dbg"].iter().any(|name| follows(at, &[name, "!"])) {
            faults.push(format!("leaves a {}!", tokens[at]));
        }
    }
}

fn check_colours(path: &str, tokens: &[Token], faults: &mut Vec<String>) {
    if path.starts_with("src/app/theme") {
        return;
    }
    for window in tokens.windows(3) {
        let [kind, separator, name] = window else {
            continue;
        };
        let is_colour = match kind.as_str() {
            "Color32" => {
                name.starts_with("from_")
                    || (name.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_')
                        && !["TRANSPARENT", "PLACEHOLDER", "WHITE"].contains(&name.as_str()))
            }
            "Rgba" => true,
            _ => false,
        };
        if separator == "::" && is_colour {
            faults.push(format!("makes a colour, {kind}::{name}, outside of the theme"));
        }
    }
}

/// The module path of a file: `src/engine/plan/edit.rs` is `engine::plan::edit`.
fn module_of(path: &str) -> Vec<String> {
    let stem = path.strip_prefix("src/").unwrap_or(path).strip_suffix(".rs").unwrap_or(path);
    let mut parts: Vec<String> = stem.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// Every path in the code that begins with `crate`, `super`, `self` or the name of one of our crates, as seen from
/// the window's crate: the engine's crates are its module `engine`.
fn paths_used(tokens: &[Token], module: &[String]) -> Vec<Vec<String>> {
    const OURS: [&str; 4] = ["crate", "lapidary", "lapidary_engine", "lapidary_kernels"];
    let engine = || vec!["engine".to_owned()];
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_start = at == 0 || tokens[at - 1] != "::";
        let word = tokens[at].as_str();
        if is_start && (OURS.contains(&word) || ["super", "self"].contains(&word)) {
            let mut leaves = Vec::new();
            at = read_tree(tokens, at, Vec::new(), &mut leaves);
            for leaf in leaves.into_iter().filter(|leaf| leaf.len() > 1) {
                let mut base: Vec<String> = match leaf[0].as_str() {
                    "crate" if module.first().is_some_and(|first| first == "engine") => engine(),
                    "lapidary_engine" | "lapidary_kernels" => engine(),
                    "crate" | "lapidary" => Vec::new(),
                    _ => module.to_vec(),
                };
                for part in leaf {
                    match part.as_str() {
                        own if OURS.contains(&own) => {}
                        "self" => {}
                        "super" => drop(base.pop()),
                        _ => base.push(part),
                    }
                }
                found.push(base);
            }
        } else {
            at += 1;
        }
    }
    found
}

/// Reads a path or a tree of paths (`a::{b, c::d}`) at `at`, adds its leaves, answers where it ends.
fn read_tree(tokens: &[Token], mut at: usize, mut prefix: Vec<String>, leaves: &mut Vec<Vec<String>>) -> usize {
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") => {
                at += 1;
                while at < tokens.len() && tokens[at] != "}" {
                    if tokens[at] == "," {
                        at += 1;
                    } else {
                        let before = at;
                        at = read_tree(tokens, at, prefix.clone(), leaves);
                        if at < tokens.len() && tokens[at] == "as" {
                            at += 2;
                        }
                        at = at.max(before + 1);
                    }
                }
                return at + 1;
            }
            Some(token) if is_word(token) => {
                prefix.push(token.to_owned());
                at += 1;
            }
            _ => {
                leaves.push(prefix);
                return at;
            }
        }
        if tokens.get(at).is_some_and(|token| token == "::") {
            at += 1;
        } else {
            leaves.push(prefix);
            return at;
        }
    }
}

fn is_word(token: &str) -> bool {
    token.chars().next().is_some_and(|letter| letter.is_alphabetic() || letter == '_')
}

fn tokenize(code: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut letters = code.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter.is_alphanumeric() || letter == '_' {
            let mut word = letter.to_string();
            while let Some(next) = letters.next_if(|next| next.is_alphanumeric() || *next == '_') {
                word.push(next);
            }
            tokens.push(word);
        } else if letter == ':' && letters.next_if_eq(&':').is_some() {
            tokens.push("::".to_owned());
        } else if !letter.is_whitespace() {
            tokens.push(letter.to_string());
        }
    }
    tokens
}

/// Replaces comments and the inside of strings and characters by blanks; lines stay where they are.
fn strip_comments_and_strings(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let at = |index: usize| letters.get(index).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut index = 0;
    let blank = |out: &mut String, letter: char| out.push(if letter == '\n' { '\n' } else { ' ' });
    while index < letters.len() {
        let letter = letters[index];
        let is_after_word = index > 0 && (letters[index - 1].is_alphanumeric() || letters[index - 1] == '_');
        if letter == '/' && at(index + 1) == '/' {
            while index < letters.len() && letters[index] != '\n' {
                blank(&mut out, letters[index]);
                index += 1;
            }
        } else if letter == '/' && at(index + 1) == '*' {
            let mut depth = 0;
            while index < letters.len() {
                if letters[index] == '/' && at(index + 1) == '*' {
                    depth += 1;
                } else if letters[index] == '*' && at(index + 1) == '/' {
                    depth -= 1;
                }
                blank(&mut out, letters[index]);
                index += 1;
                if depth == 0 {
                    blank(&mut out, at(index));
                    index += 1;
                    break;
                }
            }
        } else if let Some(hashes) = raw_string_hashes(&letters, index, is_after_word) {
            while letters[index] != '"' {
                blank(&mut out, letters[index]);
                index += 1;
            }
            index += 1;
            let ends = |index: usize| at(index) == '"' && (1..=hashes).all(|step| at(index + step) == '#');
            while index < letters.len() && !ends(index) {
                blank(&mut out, letters[index]);
                index += 1;
            }
            index += 1 + hashes;
            out.push_str("\"\"");
        } else if letter == '"' {
            index += 1;
            while index < letters.len() && letters[index] != '"' {
                if letters[index] == '\\' {
                    index += 1;
                }
                blank(&mut out, at(index));
                index += 1;
            }
            index += 1;
            out.push_str("\"\"");
        } else if letter == '\'' && (at(index + 1) == '\\' || at(index + 2) == '\'') {
            index += 1;
            while index < letters.len() && letters[index] != '\'' {
                index += if letters[index] == '\\' { 2 } else { 1 };
            }
            index += 1;
            out.push_str("''");
        } else {
            out.push(letter);
            index += 1;
        }
    }
    out
}

/// Number of `#` of a raw string that begins here.
fn raw_string_hashes(letters: &[char], index: usize, is_after_word: bool) -> Option<usize> {
    if is_after_word {
        return None;
    }
    let start = match letters[index] {
        'r' => index + 1,
        'b' if letters.get(index + 1) == Some(&'r') => index + 2,
        _ => return None,
    };
    let hashes = letters[start..].iter().take_while(|&&letter| letter == '#').count();
    (letters.get(start + hashes) == Some(&'"')).then_some(hashes)
}

/// Takes out what stands under `#[cfg(test)]`: one item, to the end of its braces or its semicolon.
fn strip_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(start) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..start]);
        let after = &rest[start..];
        let mut depth = 0;
        let mut end = after.len();
        for (index, letter) in after.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => {
                    depth -= 1;
                    if depth == 0 {
                        end = index + 1;
                        break;
                    }
                }
                ';' if depth == 0 => {
                    end = index + 1;
                    break;
                }
                _ => {}
            }
        }
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

/// What the checks say of a snippet at `path`, in an engine of three modules.
fn faults_of(path: &str, code: &str) -> String {
    let order = ["format", "checkpoint", "plan"].map(str::to_owned);
    check(&Source { path: path.to_owned(), text: format!("//! Doc.\n{code}\n") }, &order).join("\n")
}

#[test]
fn a_later_module_of_the_engine_is_found_however_it_is_named() {
    let file = "src/engine/checkpoint/read.rs";
    for code in [
        "use crate::plan::Plan;",
        "use crate::{format, plan};",
        "use lapidary_engine::plan::Plan;",
        "use crate::{format::Dtype as Kind, plan::{Plan, Rule}};",
        "use super::super::plan;",
        "fn f() -> super::super::plan::Plan { loop {} }",
        "fn f() { let _ = vec![crate::plan::new()]; }",
    ] {
        assert!(faults_of(file, code).contains("engine::plan"), "{code}");
    }
    for code in [
        "use crate::format::Dtype;",
        "use super::{Checkpoint, plan_of};",
        "// crate::plan",
        "fn f() -> &'static str { \"crate::plan\" }",
        "fn f() -> &'static str { r#\"\"crate::plan\"# }",
        "#[cfg(test)]\nmod tests { use crate::plan; fn g() { f().unwrap(); } }",
    ] {
        assert_eq!(faults_of(file, code), "", "{code}");
    }
    assert!(faults_of("src/engine/checkpoint/mod.rs", "use super::plan::Plan;").contains("engine::plan"));
}

#[test]
fn layers_above_are_found() {
    let cases = [
        ("src/engine/plan/mod.rs", "use lapidary::workbench::Workbench;", "workbench"),
        ("src/engine/plan/mod.rs", "fn f(ui: &mut egui::Ui) {}", "names egui"),
        ("src/workbench/mod.rs", "use crate::{app, engine::format};", "uses app"),
        ("src/workbench/mod.rs", "use super::cli;", "uses cli"),
        ("src/workbench/jobs.rs", "use crate::app::theme;", "uses app"),
        ("src/cli/run.rs", "fn f() { crate::app::run(); }", "uses app"),
    ];
    for (path, code, expected) in cases {
        let faults = faults_of(path, code);
        assert!(faults.contains(expected), "{path}: {code}: {faults}");
    }
    assert_eq!(faults_of("src/cli/run.rs", "use crate::engine::plan::Plan; use crate::workbench::Command;"), "");
    assert_eq!(window_crates_of("rayon v1.0.0\negui v0.37.0\negui-winit v0.37.0 (*)"), ["egui v0.37.0"]);
}

#[test]
fn broken_rules_of_single_files_are_found() {
    let cases = [
        ("src/cli/mod.rs", "fn f() { g().unwrap(); }", "unwrap"),
        ("src/cli/mod.rs", "fn f() { std::thread::spawn(|| {}); }", "without a name"),
        ("src/cli/mod.rs", "fn f() { std::thread::Builder::new().spawn(|| {}); }", "without a name"),
        ("src/cli/mod.rs", "use crossbeam_channel::unbounded;", "unbounded"),
        ("src/cli/mod.rs", "fn f() { let _ = std::sync::mpsc::channel::<u8>(); }", "unbounded"),
        ("src/cli/mod.rs", "fn f() { todo!() }", "todo!"),
        ("src/cli/mod.rs", "// SAFETY: none.\nfn f() { unsafe { g() } }", "unsafe outside"),
        ("src/engine/kernels/dot.rs", "fn f() { unsafe { g() } }", "SAFETY"),
        ("src/engine/kernels/dot.rs", "unsafe fn f() {}", "SAFETY"),
        (
            "src/engine/kernels/dot.rs",
            "//! # Safety\n//! One contract.\n\n\n\n\n\n\n\n\nfn f() { unsafe { g() } }",
            "SAFETY",
        ),
        ("src/app/panel.rs", "const A: Color32 = Color32::from_rgb(1, 2, 3);", "colour"),
        ("src/app/panel.rs", "const A: Color32 = egui::Color32::RED;", "colour"),
        ("src/app/panel.rs", "fn f() { Rgba::from_gray(0.5); }", "colour"),
    ];
    for (path, code, expected) in cases {
        let faults = faults_of(path, code);
        assert!(faults.contains(expected), "{path}: {code}: {faults}");
    }
    for (path, code) in [
        ("src/app/theme.rs", "const A: Color32 = Color32::from_rgb(1, 2, 3);"),
        ("src/app/panel.rs", "fn f() { Color32::TRANSPARENT; }"),
        ("src/engine/kernels/dot.rs", "// SAFETY: checked above.\nfn f() { unsafe { g() } }"),
        ("src/engine/kernels/dot.rs", "//! # Safety\n//! One contract.\n\n\n\n\n\n\n\n\nunsafe fn f() {}"),
        ("src/cli/mod.rs", "fn f() { std::thread::Builder::new().name(n).spawn(|| {}); g().unwrap_or(1); }"),
        ("src/cli/mod.rs", "fn f(c: char) -> bool { c == '\"' || c == '{' } // unsafe"),
        ("src/cli/tests.rs", "fn f() { g().unwrap(); }"),
    ] {
        assert_eq!(faults_of(path, code), "", "{path}: {code}");
    }
    let no_doc = Source { path: "src/a.rs".to_owned(), text: "fn f() {}\n".to_owned() };
    assert_eq!(check(&no_doc, &[]), ["does not open with a module doc"]);
    let long = Source { path: "src/a.rs".to_owned(), text: format!("//! Doc.\n{}", "\n".repeat(MAX_LINES)) };
    assert_eq!(check(&long, &[]).len(), 1);
}
