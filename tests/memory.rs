//! What evaluations of many items hold in memory, counted by the allocator of this program.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use lapidary::engine::evaluation::slices;
use lapidary::engine::scoring::{ItemResult, ItemWriter, Items, TaskKind, TaskSet, items::ROW_BYTES, task_items};

/// The system's allocator, with a count of the bytes in use and of the most that were.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(used, Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc` above, which is the system's, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Held by the test that runs, so that no other one's memory is counted.
static ALONE: Mutex<()> = Mutex::new(());

/// Memory that what the test's harness does meanwhile may take.
const NOISE: usize = 64 << 10;

/// Bytes of text of one result.
const LETTERS: usize = 2000;

fn result(id: usize) -> ItemResult {
    ItemResult {
        id: format!("item {id}"),
        task: "facts".into(),
        slice: ["common", "rare"][id % 2].into(),
        metric: "exact_match".into(),
        correct: !id.is_multiple_of(3),
        score: f64::from(u8::from(!id.is_multiple_of(3))),
        prediction: "p".repeat(LETTERS),
        wanted: "right".into(),
        prompt_tokens: 12,
        ..ItemResult::default()
    }
}

/// Takes `count` results in and gives them with the most bytes that were in use on the way beyond those before.
fn most_bytes(count: usize) -> (Items, usize) {
    let before = USED.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let mut writer = ItemWriter::with_capacity(count);
    (0..count).for_each(|id| writer.push(&result(id)).expect("a disk with room"));
    let items = writer.finish().expect("a disk with room");
    (items, MOST.load(Ordering::Relaxed) - before)
}

#[test]
fn ten_times_the_items_take_no_more_than_their_numbers() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (few, many) = (10_000, 100_000);
    let (first, least) = most_bytes(few);
    drop(first);
    let (items, most) = most_bytes(many);
    // 180 MB of texts more, and of those nothing.
    let more = most.saturating_sub(least);
    assert!(more <= (many - few) * (ROW_BYTES + 4) + NOISE, "{more} bytes for {} items more", many - few);
    assert!(ROW_BYTES <= 96 && least < 16 << 20, "{least}");

    // Statistics and reading one back take no more than a few bytes of each either.
    let before = USED.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let slices = slices(&items);
    assert_eq!(slices.iter().map(|slice| slice.n).sum::<usize>(), many);
    assert_eq!(items.get(many - 1).expect("a result"), result(many - 1));
    let used = MOST.load(Ordering::Relaxed) - before;
    assert!(used <= many * 64, "{used} bytes for the statistics of {many} items");
}

/// Bytes of one question's prompt.
const PROMPT: usize = 4096;

/// Writes `count` questions of two slices.
fn write_questions(path: &Path, count: usize) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).expect("a file"));
    let prompt = "p".repeat(PROMPT);
    for id in 0..count {
        let slice = ["common", "rare"][id % 2];
        writeln!(
            file,
            r#"{{"id":"item {id}","task":"facts","slice":"{slice}","type":"exact_match","prompt":"{prompt}","answer":"{id}"}}"#
        )
        .expect("a disk with room");
    }
    file.flush().expect("a disk with room");
}

/// Reads `count` questions from a file and gives them with the bytes that they hold, and the most that were in use on
/// the way.
fn read_questions(path: &Path, count: usize) -> (TaskSet, usize, usize) {
    write_questions(path, count);
    let before = USED.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let tasks = TaskSet::read(path).expect("tasks");
    (tasks, USED.load(Ordering::Relaxed) - before, MOST.load(Ordering::Relaxed) - before)
}

#[test]
fn ten_times_the_questions_take_no_more_than_their_places() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("tasks.jsonl");
    // 8 MB and 80 MB: both more than what stays in memory, so that both have the same buffers.
    let (few, many) = (2_000, 20_000);
    let (first, held_few, most_few) = read_questions(&path, few);
    drop(first);
    let (tasks, held, most) = read_questions(&path, many);
    // What stays is a row of each: neither its 4 KiB nor the hash of its id.
    let more = held.saturating_sub(held_few);
    assert!(more <= (many - few) * task_items::ROW_BYTES + NOISE, "{more} bytes for {} questions more", many - few);
    assert!(task_items::ROW_BYTES <= 32 && held_few <= few * task_items::ROW_BYTES + NOISE, "{held_few}");
    // While they are read, the list of rows doubles: for a moment the old one, of at most as many rows as there are,
    // stands beside one of at most twice as many. A set of the ids' hashes is at least 7/16 full once it has grown,
    // with 16 bytes and a byte of its own for each place: 16/7 places, and half as many beside them while it grows.
    let on_the_way = 3 * task_items::ROW_BYTES + (16 + 8) * 17 / 7 + 1;
    let more = most.saturating_sub(most_few);
    assert!(more <= many * on_the_way + NOISE, "{more} bytes on the way, {on_the_way} of each");

    // A sample shares what is written out, and reading them all holds one of them and what is read ahead.
    let before = USED.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let sample = tasks.sample(1_000);
    assert_eq!((sample.items.len(), sample.items.slices().count()), (2_000, 2));
    for (id, item) in tasks.items.iter().enumerate() {
        let item = item.expect("an item");
        assert_eq!((item.id, item.kind.prompt().len()), (format!("item {id}"), PROMPT));
    }
    let last = sample.items.get(1_999).expect("an item");
    // Of each slice's 10,000 items every tenth: the last of the second slice is its item 9,990.
    assert!(matches!(last.kind, TaskKind::ExactMatch { answer, .. } if answer == "19981"));
    let used = MOST.load(Ordering::Relaxed) - before;
    assert!(used <= (512 << 10), "{used} bytes for a sample of {} and one pass over {many}", sample.items.len());
}
