//! What passes over many tensors and evaluations of many items hold in memory, counted by the allocator of this
//! program.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use common::TinyModel;
use lapidary::engine::Progress;
use lapidary::engine::checkpoint::{Checkpoint, LayerShape};
use lapidary::engine::evaluation::slices;
use lapidary::engine::pass::{self, PassOptions};
use lapidary::engine::plan::{self, Plan};
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

/// A model in f32 whose largest tensors are the three of `channels` by [`HIDDEN`] weights in each layer.
fn model(layers: usize, channels: usize) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().expect("folder");
    let layer = LayerShape { heads: 4, kv_heads: 2, mlp_channels: channels };
    let shape = TinyModel { hidden: HIDDEN, head_dim: 64, layers: vec![layer; layers], ..TinyModel::default() };
    shape.write(&folder.path().join("model"));
    let checkpoint = Checkpoint::open(&folder.path().join("model")).expect("opens");
    (folder, checkpoint)
}

/// Inputs of every matrix but the last of a layer.
const HIDDEN: usize = 256;

/// The most bytes in use, beyond those before, while all matrices of a model become q4_k on four threads.
fn most_bytes_of_a_pass(model: &(tempfile::TempDir, Checkpoint), chunk_weights: usize) -> usize {
    let (folder, checkpoint) = model;
    let plan = Plan::parse("version = 1\ntarget = \"gguf\"\n[default]\nformat = \"q4_k\"\n", None).expect("a plan");
    let resolved = plan::resolve(&plan, checkpoint).expect("resolves");
    let options = PassOptions { chunk_weights, ..PassOptions::default() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().expect("a pool");
    let output = folder.path().join("out.gguf");
    let run = || {
        let before = USED.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        pass::run(checkpoint, &resolved, &output, &options, &Progress::default()).expect("runs");
        MOST.load(Ordering::Relaxed) - before
    };
    // The first time, what is made once and kept comes on top.
    pool.install(run);
    pool.install(run)
}

#[test]
fn a_pass_holds_one_tensor_or_a_chunk_of_it_and_not_the_model() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (few, many) = (model(2, 1024), model(8, 1024));
    let tensors = [&few, &many].map(|(_, checkpoint)| checkpoint.tensors.len());
    assert_eq!(tensors, [2 * 9 + 3, 8 * 9 + 3]);
    let largest = 1024 * HIDDEN;
    let whole = 1 << 20;
    // Source and result of one tensor are there together: 4 bytes and 144 bytes for 256 weights.
    let working_set = |weights: usize| weights * 4 + weights / 256 * 144;

    // Four times the tensors: nothing of their 8 MB a layer, but what the header and the report say of each.
    let (least, most) = (most_bytes_of_a_pass(&few, whole), most_bytes_of_a_pass(&many, whole));
    let each = 4 << 10;
    assert!(most <= least + (tensors[1] - tensors[0]) * each + NOISE, "{least} {most}");
    assert!(least >= working_set(largest), "{least}");
    // Beside it the writer's buffer of 1 MiB.
    assert!(least <= working_set(largest) + (2 << 20), "{least}");

    // A largest tensor of twice the size is what counts, as long as it is not cut into chunks.
    let wide = model(2, 2048);
    let larger = most_bytes_of_a_pass(&wide, whole);
    assert!(larger + NOISE >= least + working_set(largest), "{least} {larger}");
    let chunk = 64 << 10;
    let [cut, larger_cut] = [&few, &wide].map(|model| most_bytes_of_a_pass(model, chunk));
    assert!(larger_cut <= cut + working_set(chunk) / 2 + NOISE, "{cut} {larger_cut}");
    assert!(cut + working_set(largest) / 2 <= least, "{cut} {least}");
}
