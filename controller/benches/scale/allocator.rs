//! The programs' allocator, which counts what is held while somebody asks for that.
#![allow(unsafe_code, reason = "a global allocator cannot be had without")]

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use tikv_jemallocator::Jemalloc;

/// jemalloc; counts between [`count`] and the end of the process.
pub(crate) struct Counting;

/// Elsewhere latencies are measured, which a number that all threads write to would spoil.
static ON: AtomicBool = AtomicBool::new(false);
/// It wraps: what was allocated before it was begun is freed as well.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Counts from now on.
pub(crate) fn count() {
    ON.store(true, Relaxed);
}

/// Bytes that are held, as the allocator rounds them, more than when it was begun.
pub(crate) fn held() -> u64 {
    HELD.load(Relaxed) as u64
}

// === impl Counting ===

// SAFETY: everything is what jemalloc does; beside that only numbers change.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let got = unsafe { Jemalloc.alloc(layout) };
        came(got);
        got
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let got = unsafe { Jemalloc.alloc_zeroed(layout) };
        came(got);
        got
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        goes(pointer);
        let got = unsafe { Jemalloc.realloc(pointer, layout, size) };
        came(if got.is_null() { pointer } else { got });
        got
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        goes(pointer);
        unsafe { Jemalloc.dealloc(pointer, layout) }
    }
}

fn came(pointer: *mut u8) {
    if ON.load(Relaxed) && !pointer.is_null() {
        HELD.fetch_add(size(pointer), Relaxed);
    }
}

fn goes(pointer: *mut u8) {
    if ON.load(Relaxed) {
        HELD.fetch_sub(size(pointer), Relaxed);
    }
}

fn size(pointer: *mut u8) -> usize {
    // SAFETY: jemalloc's own, and not given back yet.
    unsafe { tikv_jemallocator::usable_size(pointer) }
}
