//! What evaluations of many items hold in memory, counted by the allocator of this program.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use lapidary::engine::evaluation::slices;
use lapidary::engine::scoring::{ItemResult, ItemWriter, Items, items::ROW_BYTES};

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

/// One test alone, so that no other one's memory is counted.
#[test]
fn ten_times_the_items_take_no_more_than_their_numbers() {
    let (few, many) = (10_000, 100_000);
    let (first, least) = most_bytes(few);
    drop(first);
    let (items, most) = most_bytes(many);
    // 180 MB of texts more, and of those nothing.
    let more = most.saturating_sub(least);
    assert!(more <= (many - few) * (ROW_BYTES + 4) + (64 << 10), "{more} bytes for {} items more", many - few);
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
