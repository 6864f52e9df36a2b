//! Memory that `Buffered` holds for a replay, counted by the global allocator.
//!
//! A slice of a large buffer keeps all of that buffer in memory, and each frame costs some memory
//! besides its data. So what is held is compared with the limit, not with the data.

#![expect(unsafe_code, reason = "implementing `GlobalAlloc` requires it")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tower_client_credentials::{
    BoxError,
    replay::{Buffered, KeptFrames, ReplayBody, ReplayPolicy},
};

const KIB: usize = 1024;
const LIMIT: usize = 64 * KIB;

/// How many times the limit may be held, at any time.
const MULTIPLE: usize = 3;

/// What may be held besides: the buffer itself, and the frame that is being read.
const FIXED: usize = 20 * KIB;

/// hyper reads HTTP/1.1 into buffers of this size at first, and larger ones later. The frames of
/// HTTP/2 are twice as long by default.
const READ_BUFFER: usize = 8 * KIB;

/// What the data of a frame is part of.
#[derive(Clone, Copy, Debug)]
enum Memory {
    /// Nothing else.
    Own,
    /// A read buffer, which holds no other frame.
    SliceOf(usize),
}

/// A body whose frames are made when they are polled, so that it holds no data itself.
struct Chunks {
    /// The sizes of the frames, over and over.
    sizes: &'static [usize],
    memory: Memory,
    len: usize,
    sent: usize,
    frames: usize,
    trailers: Option<HeaderMap>,
    is_sized: bool,
}

fn chunks(sizes: &'static [usize], memory: Memory, len: usize) -> Chunks {
    Chunks {
        sizes,
        memory,
        len,
        sent: 0,
        frames: 0,
        trailers: None,
        is_sized: false,
    }
}

/// The byte at a place of the body.
fn byte(at: usize) -> u8 {
    u8::try_from(at % 251).expect("less than 251")
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let size = self.sizes[self.frames % self.sizes.len()].min(self.len - self.sent);
        if size == 0 {
            return Poll::Ready(self.trailers.take().map(|it| Ok(Frame::trailers(it))));
        }
        let capacity = match self.memory {
            Memory::Own => size,
            Memory::SliceOf(buffer) => buffer.max(size),
        };
        let mut data = vec![0; capacity];
        for (at, place) in data[..size].iter_mut().enumerate() {
            *place = byte(self.sent + at);
        }
        self.sent += size;
        self.frames += 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(data).slice(..size)))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_sized && self.sent == self.len
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_sized {
            SizeHint::with_exact((self.len - self.sent) as u64)
        } else {
            SizeHint::default()
        }
    }
}

/// Reads to the end, and drops each frame before it reads the next. Returns the number of bytes.
fn read(body: &mut ReplayBody<Chunks>) -> usize {
    let mut read = 0;
    while let Some(frame) = body.frame().now_or_never().expect("frames are there") {
        let Ok(data) = frame.expect("the body does not fail").into_data() else {
            continue;
        };
        assert!(
            data.iter()
                .enumerate()
                .all(|(at, it)| *it == byte(read + at))
        );
        read += data.len();
    }
    read
}

type Split = (ReplayBody<Chunks>, Option<KeptFrames<Chunks>>);

fn split(body: Chunks, limit: usize) -> Split {
    Buffered::new(limit).split(body)
}

fn restore(kept: &mut KeptFrames<Chunks>) -> Option<ReplayBody<Chunks>> {
    Buffered::new(LIMIT).restore(kept)
}

/// Asserts that no more than a small multiple of the limit was held since `start`.
#[track_caller]
fn assert_bounded(start: Start, limit: usize, what: impl fmt::Display) {
    let peak = start.peak();
    assert!(
        peak <= MULTIPLE * limit + FIXED,
        "{what}: held {} KiB for a limit of {} KiB",
        peak / KIB,
        limit / KIB
    );
}

const SIZES: [&[usize]; 10] = [
    &[1],
    &[2],
    &[100],
    &[1000],
    &[8 * KIB - 1],
    &[8 * KIB],
    &[16 * KIB],
    // Small frames between large ones.
    &[1, 8 * KIB],
    &[1, 8 * KIB, 100],
    &[16 * KIB, 1, 1, 1],
];

#[test]
fn buffer_holds_a_small_multiple_of_its_limit_however_the_frames_arrive() {
    for sizes in SIZES {
        for memory in [
            Memory::Own,
            Memory::SliceOf(READ_BUFFER),
            Memory::SliceOf(2 * READ_BUFFER),
        ] {
            let what = format!("frames of {sizes:?} bytes, {memory:?}");
            let start = Start::now();

            let (mut first, kept) = split(chunks(sizes, memory, LIMIT), LIMIT);
            assert_eq!(read(&mut first), LIMIT);
            assert_bounded(start, LIMIT, format!("first send, {what}"));

            let mut kept = kept.unwrap();
            for send in ["first replay", "second replay"] {
                let mut replay = restore(&mut kept).unwrap();
                assert_eq!(read(&mut replay), LIMIT);
                assert_bounded(start, LIMIT, format!("{send}, {what}"));
            }
        }
    }
}

/// The API rejects the token while the body is being sent, and the replay sends the rest.
#[test]
fn buffer_that_is_taken_over_by_a_replay_holds_a_small_multiple_of_its_limit() {
    for sizes in SIZES {
        let start = Start::now();
        let body = chunks(sizes, Memory::SliceOf(READ_BUFFER), LIMIT);
        let (mut first, kept) = split(body, LIMIT);
        let mut kept = kept.unwrap();
        for _ in 0..3 {
            first.frame().now_or_never().expect("frames are there");
        }
        let mut second = restore(&mut kept).unwrap();
        for _ in 0..5 {
            second.frame().now_or_never().expect("frames are there");
        }
        let mut third = restore(&mut kept).unwrap();

        assert_eq!(read(&mut third), LIMIT);

        assert_bounded(start, LIMIT, format!("frames of {sizes:?} bytes"));
    }
}

#[test]
fn small_limit_costs_little() {
    for (sizes, len) in [(&[1][..], 100), (&[1], 101), (&[100], 100)] {
        for is_sized in [false, true] {
            let start = Start::now();
            let mut body = chunks(sizes, Memory::SliceOf(READ_BUFFER), len);
            body.is_sized = is_sized;

            let (mut first, kept) = split(body, 100);
            assert_eq!(read(&mut first), len);

            let held = start.held();
            assert!(held <= 2 * KIB, "{held} bytes are held of {len}");
            drop((first, kept));
        }
    }
}

/// A body in memory may be a slice of a buffer, too: a proxy passes on what it has read.
#[test]
fn small_body_in_memory_does_not_keep_its_buffer() {
    for size in [1, 1000] {
        let start = Start::now();
        let data = Bytes::from(vec![7; 1024 * KIB]).slice(..size);

        let (first, kept) = Buffered::new(LIMIT).split(Full::new(data));
        drop(first);

        let held = start.held();
        assert!(held <= 2 * KIB, "{held} bytes are held of {size}");
        let mut kept = kept.unwrap();
        let second = Buffered::new(LIMIT).restore(&mut kept).unwrap();
        let second = second.collect().now_or_never().expect("it is in memory");
        assert_eq!(second.unwrap().to_bytes().len(), size);
    }
}

#[test]
fn everything_is_freed_when_the_limit_is_exceeded_or_the_call_is_over() {
    let start = Start::now();
    let body = chunks(&[1000], Memory::SliceOf(READ_BUFFER), 2 * LIMIT);
    let (mut first, mut kept) = split(body, LIMIT);
    assert_eq!(read(&mut first), 2 * LIMIT);
    assert!(kept.as_mut().is_some_and(|kept| restore(kept).is_none()));
    assert!(start.held() <= 4 * KIB, "{} bytes", start.held());

    let body = chunks(&[1000], Memory::SliceOf(READ_BUFFER), LIMIT);
    let (mut first, kept) = split(body, LIMIT);
    assert_eq!(read(&mut first), LIMIT);
    drop(kept);
    assert!(start.held() <= 6 * KIB, "{} bytes", start.held());
}

#[test]
fn large_trailers_count_towards_the_limit() {
    let mut trailers = HeaderMap::new();
    for _ in 0..100 {
        let value = HeaderValue::from_bytes(&[b'x'; 100 * KIB]).unwrap();
        trailers.append("x-large", value);
    }
    let start = Start::now();
    for sizes in [&[1_usize][..], &[100]] {
        let mut body = chunks(sizes, Memory::Own, 100);
        body.trailers = Some(trailers.clone());
        let (mut first, kept) = split(body, LIMIT);
        assert_eq!(read(&mut first), 100);

        assert!(restore(&mut kept.unwrap()).is_none());
        assert!(start.held() <= 4 * KIB, "{} bytes", start.held());
    }
}

/// A point in time from which allocations are counted.
#[derive(Clone, Copy)]
struct Start(isize);

impl Start {
    fn now() -> Self {
        let held = HELD.get();
        PEAK.set(held);
        Self(held)
    }

    /// Bytes that this thread has allocated since, and not freed.
    fn held(self) -> usize {
        usize::try_from(HELD.get() - self.0).unwrap_or(0)
    }

    /// The largest number of bytes held since.
    fn peak(self) -> usize {
        usize::try_from(PEAK.get() - self.0).unwrap_or(0)
    }
}

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(grown: usize, shrunk: usize) {
    let held = HELD.get() + grown as isize - shrunk as isize;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

/// Counts the bytes that each thread allocates and frees.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every method forwards to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller upholds the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both exist while one is copied to the other.
        count(size, 0);
        count(0, layout.size());
        // SAFETY: the caller upholds the contract.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller upholds the contract.
        unsafe { System.dealloc(old, layout) }
    }
}
