//! Worked examples in front of every prompt, from a set that is held apart from the items.
//!
//! A description of the task, as MMLU's prompts begin with one, stands once before the examples and not in each, as
//! lm-evaluation-harness writes it.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::items::hash_of;
use super::layouts::described;
use super::random::Random;
use super::tasks::{TaskItem, TaskKind, TaskSet};
use crate::error::{Fault, Result, Stage};

/// Between two examples, and before the item.
const BETWEEN: &str = "\n\n";

/// An example as text, without a description: the prompt and the right answer as they would stand in a text.
fn worked(item: &TaskItem) -> String {
    match &item.kind {
        TaskKind::MultipleContext { contexts, continuation, answer } => format!("{}{continuation}", contexts[*answer]),
        kind => {
            let ((_, prompt), wanted) = (described(kind.prompt()), kind.wanted());
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
/// Where an example is one of the items, or where there are too few.
pub fn with_examples(tasks: &TaskSet, examples: &TaskSet, count: usize, seed: u64) -> Result<TaskSet> {
    check_apart(tasks, examples)?;
    let mut by_task: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for index in 0..examples.items.len() {
        by_task.entry(examples.items.slice_of(index).task).or_default().push(index);
    }
    let everything: Vec<usize> = (0..examples.items.len()).collect();
    let mut prefixes: BTreeMap<String, String> = BTreeMap::new();
    let items = tasks.items.map(|item| {
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
            let drawn = examples.items.read(&draw(pool, count, seed))?;
            let texts: Vec<String> = drawn.iter().map(worked).collect();
            prefixes.insert(item.task.clone(), format!("{}{BETWEEN}", texts.join(BETWEEN)));
        }
        let prefix = &prefixes[&item.task];
        item.kind.map_prompts(&mut |prompt| {
            let (description, own) = described(prompt);
            Ok(format!("{description}{prefix}{own}"))
        })
    })?;
    let parts = format!("{} few-shot {count} {seed} {}", tasks.hash, examples.hash);
    let hash = blake3::hash(parts.as_bytes()).to_hex().to_string();
    Ok(TaskSet { hash, items, ..tasks.clone() })
}

/// Refuses examples that are among the items: by prompt, and by id where they have none. Rows of two splits of one
/// benchmark are numbered alike, so that an id alone does not tell.
fn check_apart(tasks: &TaskSet, examples: &TaskSet) -> Result<()> {
    let (mut ids, mut prompts) = (HashSet::new(), HashSet::new());
    for item in tasks.items.iter() {
        let item = item?;
        ids.insert(hash_of(&item.id));
        // Without a prompt there is nothing that an example could give away.
        if !item.kind.prompt().is_empty() {
            prompts.insert(hash_of(item.kind.prompt()));
        }
    }
    for example in examples.items.iter() {
        let example = example?;
        let prompt = example.kind.prompt();
        let is_item =
            if prompt.is_empty() { ids.contains(&hash_of(&example.id)) } else { prompts.contains(&hash_of(prompt)) };
        if is_item {
            return Err(fault(format!("the example {:?} is also one of the items", example.id), &examples.path)
                .fix("take the examples from another split: an item that shows its own answer measures nothing")
                .into());
        }
    }
    Ok(())
}

/// `count` different ones in random order.
fn draw(pool: &[usize], count: usize, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed, 0);
    let mut left = pool.to_vec();
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
        let first = shots.items.get(0).expect("an item");
        let prompt = first.kind.prompt();
        assert!(prompt.ends_with("\n\ntest Q0:") && prompt.matches("train Q").count() == 2, "{prompt}");
        let line = prompt.lines().next().expect("a line");
        let number = line.trim_start_matches("train Q").split(':').next().expect("a number");
        assert_eq!(line, format!("train Q{number}: A{number}"));
        let again = with_examples(&tasks, &examples, 2, 7).expect("again").items;
        assert_eq!(again.to_vec().expect("items"), shots.items.to_vec().expect("items"));
        // Results are found again by this hash.
        let parts = format!("{} few-shot 2 7 {}", tasks.hash, examples.hash);
        assert_eq!(shots.hash, blake3::hash(parts.as_bytes()).to_hex().to_string());
    }

    #[test]
    fn a_description_stands_once_before_all_examples() {
        let read = |rows: &str, name: &str| {
            let folder = tempfile::tempdir().expect("folder");
            let path = folder.path().join(name);
            std::fs::write(&path, format!("question,subject,choices,answer\n{rows}")).expect("writes");
            TaskSet::read(&path).expect("tasks")
        };
        let item = read("1+1?,abstract_algebra,\"[\"\"1\"\",\"\"2\"\"]\",1\n", "abstract_algebra_test.csv");
        let examples = read(
            "2+1?,abstract_algebra,\"[\"\"3\"\",\"\"2\"\"]\",0\n1+0?,abstract_algebra,\"[\"\"0\"\",\"\"1\"\"]\",1\n",
            "abstract_algebra_dev.csv",
        );
        // Rows of both splits have the same numbers, and so the same ids.
        assert_eq!(item.items.get(0).expect("an item").id, examples.items.get(0).expect("an example").id);
        let shots = with_examples(&item, &examples, 2, 0).expect("examples");
        let shot = shots.items.get(0).expect("an item");
        let description = "The following are multiple choice questions (with answers) about abstract algebra.";
        let blocks: Vec<&str> = shot.kind.prompt().split("\n\n").collect();
        assert_eq!((blocks.len(), blocks[0]), (4, description));
        let mut worked = blocks[1..3].to_vec();
        worked.sort_unstable();
        assert_eq!(worked, ["1+0?\nA. 0\nB. 1\nAnswer: B", "2+1?\nA. 3\nB. 2\nAnswer: A"]);
        assert_eq!(blocks[3], "1+1?\nA. 1\nB. 2\nAnswer:");
    }

    #[test]
    fn an_item_may_not_be_its_own_example_and_there_must_be_enough() {
        let error = with_examples(&set("a", 3), &set("a", 3), 1, 0).expect_err("same").to_string();
        assert!(error.contains("also one of the items"), "{error}");
        let error = with_examples(&set("a", 3), &set("b", 3), 4, 0).expect_err("few").to_string();
        assert!(error.contains("3 examples"), "{error}");
    }
}
