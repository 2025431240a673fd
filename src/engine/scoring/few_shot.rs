//! Worked examples in front of every prompt, from a set that is held apart from the items.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::random::Random;
use super::tasks::{TaskItem, TaskKind, TaskSet};
use crate::error::{Fault, Result, Stage};

/// Between two examples, and before the item.
const BETWEEN: &str = "\n\n";

/// An example as text: the prompt and the right answer as they would stand in a text.
fn worked(item: &TaskItem) -> String {
    match &item.kind {
        TaskKind::MultipleContext { contexts, continuation, answer } => format!("{}{continuation}", contexts[*answer]),
        kind => {
            let (prompt, wanted) = (kind.prompt(), kind.wanted());
            let ends_open = prompt.ends_with(char::is_whitespace) || wanted.starts_with(char::is_whitespace);
            let between = if ends_open || prompt.is_empty() { "" } else { " " };
            format!("{prompt}{between}{wanted}")
        }
    }
}

fn fault(cause: String, path: &Path) -> Fault {
    Fault::new(Stage::Tasks, cause).file(path)
}

/// The tasks with `count` examples of `examples` in front of every prompt, of the item's own task where there
/// are such; the same for all items of a task, drawn with `seed`.
///
/// # Errors
/// Where an example is one of the items, by id or by prompt, or where there are too few.
pub fn with_examples(tasks: &TaskSet, examples: &TaskSet, count: usize, seed: u64) -> Result<TaskSet> {
    let ids: HashSet<&str> = tasks.items.iter().map(|item| item.id.as_str()).collect();
    let prompts: HashSet<&str> = tasks.items.iter().map(|item| item.kind.prompt()).filter(|p| !p.is_empty()).collect();
    for example in &examples.items {
        if ids.contains(example.id.as_str()) || prompts.contains(example.kind.prompt()) {
            return Err(fault(format!("the example {:?} is also one of the items", example.id), &examples.path)
                .fix("take the examples from another split: an item that shows its own answer measures nothing")
                .into());
        }
    }
    let mut by_task: BTreeMap<&str, Vec<&TaskItem>> = BTreeMap::new();
    for example in &examples.items {
        by_task.entry(&example.task).or_default().push(example);
    }
    let everything: Vec<&TaskItem> = examples.items.iter().collect();
    let mut prefixes: BTreeMap<String, String> = BTreeMap::new();
    let mut tasks = tasks.clone();
    for item in &mut tasks.items {
        if !prefixes.contains_key(&item.task) {
            let pool = by_task.get(item.task.as_str()).unwrap_or(&everything);
            if pool.len() < count {
                return Err(fault(
                    format!("there are {} examples for the task {:?}, {count} are asked for", pool.len(), item.task),
                    &examples.path,
                )
                .fix("ask for fewer, or give more examples")
                .into());
            }
            let texts: Vec<String> = draw(pool, count, seed).into_iter().map(worked).collect();
            prefixes.insert(item.task.clone(), format!("{}{BETWEEN}", texts.join(BETWEEN)));
        }
        let prefix = prefixes[&item.task].clone();
        item.kind.map_prompts(&mut |prompt| Ok(format!("{prefix}{prompt}")))?;
    }
    let parts = format!("{} few-shot {count} {seed} {}", tasks.hash, examples.hash);
    tasks.hash = blake3::hash(parts.as_bytes()).to_hex().to_string();
    Ok(tasks)
}

/// `count` different ones in random order.
fn draw<'a>(pool: &[&'a TaskItem], count: usize, seed: u64) -> Vec<&'a TaskItem> {
    let mut random = Random::new(seed, 0);
    let mut left: Vec<&TaskItem> = pool.to_vec();
    (0..count.min(pool.len())).map(|_| left.swap_remove((random.unit() * left.len() as f64) as usize)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(prefix: &str, count: usize) -> TaskSet {
        let lines: Vec<String> = (0..count)
            .map(|i| {
                format!(
                    r#"{{"id":"{prefix}{i}","task":"t","slice":"s","type":"exact_match","prompt":"{prefix} Q{i}:","answer":"A{i}"}}"#
                )
            })
            .collect();
        TaskSet::parse(lines.join("\n").as_bytes(), Path::new("t")).expect("tasks")
    }

    #[test]
    fn examples_stand_in_front_with_their_answers() {
        let (tasks, examples) = (set("test", 3), set("train", 5));
        let shots = with_examples(&tasks, &examples, 2, 7).expect("examples");
        let prompt = shots.items[0].kind.prompt();
        assert!(prompt.ends_with("\n\ntest Q0:") && prompt.matches("train Q").count() == 2, "{prompt}");
        let first = prompt.lines().next().expect("a line");
        let number = first.trim_start_matches("train Q").split(':').next().expect("a number");
        assert_eq!(first, format!("train Q{number}: A{number}"));
        assert_eq!(with_examples(&tasks, &examples, 2, 7).expect("again").items, shots.items);
        assert_ne!(shots.hash, tasks.hash);
    }

    #[test]
    fn an_item_may_not_be_its_own_example_and_there_must_be_enough() {
        let error = with_examples(&set("a", 3), &set("a", 3), 1, 0).expect_err("same").to_string();
        assert!(error.contains("also one of the items"), "{error}");
        let error = with_examples(&set("a", 3), &set("b", 3), 4, 0).expect_err("few").to_string();
        assert!(error.contains("3 examples"), "{error}");
    }
}
