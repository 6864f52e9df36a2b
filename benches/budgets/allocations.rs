//! Allocations of a call, counted by the global allocator.

#![expect(unsafe_code, reason = "implementing `GlobalAlloc` requires it")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
};

use benches::{Api, InlinedFuture, Stacks, repeat, repeat_cloned, request};
use tower::BoxError;

use crate::table::Table;

/// None, one, a typical number, and many.
const HEADERS: [usize; 4] = [0, 1, 4, 12];

const CALLS: u64 = 100;

/// The first calls of a service may do work that later calls skip.
const WARM_UP: u64 = 3;

pub(crate) fn measure(table: &mut Table) -> Result<(), BoxError> {
    table.section("Allocations of a call, less those of the bare leaf");
    let stacks = Stacks::new()?;
    for headers in HEADERS {
        with_headers(table, &stacks, headers);
    }
    Ok(())
}

fn with_headers(table: &mut Table, stacks: &Stacks, headers: usize) {
    let bare = per_call(stacks.leaf::<InlinedFuture>(), headers);
    let add = per_call(stacks.add_authorization::<InlinedFuture>(), headers) - bare;
    let no_replay = per_call(stacks.no_replay::<InlinedFuture>(), headers) - bare;
    let with_lookup = per_call(stacks.lookup_each_call::<InlinedFuture>(), headers) - bare;
    let clone_body = per_call(stacks.clone_body::<InlinedFuture>(), headers) - bare;

    let bare = per_cloned_call(&stacks.leaf::<InlinedFuture>(), headers);
    let add_cloned = per_cloned_call(&stacks.add_authorization::<InlinedFuture>(), headers) - bare;
    let no_replay_cloned = per_cloned_call(&stacks.no_replay::<InlinedFuture>(), headers) - bare;
    let clone_body_cloned = per_cloned_call(&stacks.clone_body::<InlinedFuture>(), headers) - bare;

    let mut row = |stack: &str, style: &str, figure, budget, details: &str| {
        let name = format!("{stack}, {headers} headers{style}");
        table.row(&name, figure, budget, details);
    };
    let details = "AddAuthorization's";
    row("NoReplay", "", no_replay, add, details);
    row("NoReplay", ", lookup each call", with_lookup, add, details);
    let style = ", clone per call";
    row("NoReplay", style, no_replay_cloned, add_cloned, details);

    let clone = per_clone(headers);
    let details = format!("AddAuthorization's {add} and a clone's {clone}");
    row("CloneBody", "", clone_body, add + clone, &details);
    let budget = add_cloned + clone;
    row("CloneBody", style, clone_body_cloned, budget, &details);
}

fn per_call(mut service: impl Api, headers: usize) -> f64 {
    repeat(&mut service, headers, WARM_UP);
    count(|| repeat(&mut service, headers, CALLS)) / CALLS as f64
}

fn per_cloned_call(service: &(impl Api + Clone), headers: usize) -> f64 {
    count(|| repeat_cloned(service, headers, CALLS)) / CALLS as f64
}

fn per_clone(headers: usize) -> f64 {
    let request = request(headers);
    count(|| drop(black_box(request.clone())))
}

fn count(work: impl FnOnce()) -> f64 {
    let before = ALLOCATIONS.get();
    work();
    (ALLOCATIONS.get() - before) as f64
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts the allocations and reallocations of each thread.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every method forwards to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller upholds the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller upholds the contract.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract.
        unsafe { System.dealloc(old, layout) }
    }
}
