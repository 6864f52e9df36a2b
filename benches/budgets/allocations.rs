//! Allocations of a call, counted by the global allocator.

#![expect(unsafe_code, reason = "a global allocator cannot be written without")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    future::Ready,
    hint::black_box,
};

use benches::{Api, ApiResponse, Stacks, repeat, request};
use tower::BoxError;

use crate::table::Table;

/// None, one, a usual number, and many.
const HEADERS: [usize; 4] = [0, 1, 4, 12];

const CALLS: u64 = 100;

pub(crate) fn measure(table: &mut Table) -> Result<(), BoxError> {
    type Answer = Ready<Result<ApiResponse, BoxError>>;

    table.part("Allocations of a call, less those of the bare leaf");
    let stacks = Stacks::new()?;
    for headers in HEADERS {
        let bare = per_call(&mut stacks.leaf::<Answer>(), headers);
        let add = per_call(&mut stacks.add_authorization::<Answer>(), headers) - bare;
        let never = per_call(&mut stacks.never::<Answer>(), headers) - bare;
        let clone_body = per_call(&mut stacks.clone_body::<Answer>(), headers) - bare;
        let clone = of_a_clone(headers);

        let details = "AddAuthorization's";
        table.row(&format!("NoReplay, {headers} headers"), never, add, details);
        let details = format!("AddAuthorization's {add} and a clone's {clone}");
        let what = format!("CloneBody, {headers} headers");
        table.row(&what, clone_body, add + clone, &details);
    }
    Ok(())
}

fn per_call<S: Api>(service: &mut S, headers: usize) -> f64 {
    // The first call has things to do that no other has.
    repeat(service, headers, 1);
    count(|| repeat(service, headers, CALLS)) / CALLS as f64
}

fn of_a_clone(headers: usize) -> f64 {
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

/// Counts each allocation of a thread, and each change of one's size.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: passed on as it came.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: passed on as it came.
        unsafe { System.dealloc(old, layout) }
    }
}
