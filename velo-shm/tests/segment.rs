//! What every kind of segment promises, and what the kinds promise by themselves.
#![cfg(not(loom))]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "tests own the whole segment"
)]

mod common;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use common::backends;
use velo_shm::{MemfdSegment, Segment, SegmentError};

const LEN: usize = 64 << 10;

fn bytes(segment: &dyn Segment) -> &[u8] {
    unsafe { std::slice::from_raw_parts(segment.base().as_ptr(), segment.len()) }
}

fn fill(segment: &dyn Segment, range: std::ops::Range<usize>) {
    unsafe { segment.base().add(range.start).write_bytes(7, range.len()) }
}

#[test]
fn it_is_aligned_zero_and_as_long_as_asked() {
    for create in backends() {
        let segment = create(LEN);
        assert_eq!(segment.len(), LEN);
        assert_eq!(segment.base().as_ptr().addr() % 4096, 0);
        assert!(bytes(&*segment).iter().all(|&byte| byte == 0));
    }
}

#[test]
fn committing_keeps_what_is_there() {
    for create in backends() {
        let segment = create(LEN);
        fill(&*segment, 100..200);
        segment.commit(0, LEN).unwrap();
        segment.commit(50, 3).unwrap();
        segment.commit(0, 0).unwrap();
        assert!(bytes(&*segment)[100..200].iter().all(|&byte| byte == 7));
    }
}

#[test]
fn what_was_discarded_is_zero_and_usable_again() {
    for create in backends() {
        let segment = create(LEN);
        fill(&*segment, 0..LEN);
        segment.discard(4096, 8192).unwrap();
        segment.discard(0, 0).unwrap();
        assert!(bytes(&*segment)[4096..12288].iter().all(|&byte| byte == 0));
        assert!(bytes(&*segment)[..4096].iter().all(|&byte| byte == 7));
        assert!(bytes(&*segment)[12288..].iter().all(|&byte| byte == 7));
        segment.commit(4096, 8192).unwrap();
        fill(&*segment, 4096..12288);
    }
}

#[test]
fn ranges_outside_are_refused() {
    for create in backends() {
        let segment = create(LEN);
        for (offset, len) in [(LEN, 1), (0, LEN + 1), (usize::MAX, 2), (4096, usize::MAX)] {
            let error = segment.commit(offset, len).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
            assert!(segment.discard(offset, len).is_err());
        }
    }
}

#[test]
fn an_empty_segment_is_refused() {
    assert!(matches!(MemfdSegment::create(0), Err(SegmentError::Empty)));
    #[cfg(feature = "named")]
    assert!(matches!(
        velo_shm::NamedSegment::create(0),
        Err(SegmentError::Empty)
    ));
}

#[test]
fn a_length_that_cannot_be_is_an_error_that_says_so() {
    let error = MemfdSegment::create(usize::MAX).unwrap_err();
    assert!(
        error.to_string().contains(&usize::MAX.to_string()),
        "{error}"
    );
    let error = MemfdSegment::create(isize::MAX as usize - 8191).unwrap_err();
    assert!(error.to_string().contains("cannot ma"), "{error}");
}

/// How much memory a memfd really has.
fn resident(segment: &MemfdSegment) -> i64 {
    nix::sys::stat::fstat(segment.as_fd()).unwrap().st_blocks * 512
}

#[test]
fn memfd_pages_cost_nothing_until_they_are_committed() {
    let segment = MemfdSegment::create(1 << 36).unwrap();
    assert_eq!(resident(&segment), 0);
    segment.commit(1 << 35, 1 << 20).unwrap();
    assert_eq!(resident(&segment), 1 << 20);
    segment.discard(1 << 35, 1 << 20).unwrap();
    assert_eq!(resident(&segment), 0);
}

#[test]
fn a_memfd_is_the_same_memory_by_its_fd() {
    let segment = MemfdSegment::create(LEN).unwrap();
    let other = MemfdSegment::from_fd(segment.as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(other.len(), LEN);
    fill(&segment, 0..10);
    assert_eq!(bytes(&other)[..11], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
    drop(segment);
    assert_eq!(bytes(&other)[9], 7);
}

#[test]
fn a_memfd_cannot_be_resized() {
    let segment = MemfdSegment::create(LEN).unwrap();
    assert!(nix::unistd::ftruncate(segment.as_fd(), 0).is_err());
    assert!(nix::unistd::ftruncate(segment.as_fd(), 2 * LEN as i64).is_err());
}

#[test]
fn what_could_be_resized_is_not_mapped() {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    let fd = memfd_create(c"unsealed", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    nix::unistd::ftruncate(&fd, LEN as i64).unwrap();
    assert!(matches!(
        MemfdSegment::from_fd(fd),
        Err(SegmentError::Unsealed)
    ));
    let file = OwnedFd::from(File::open("/dev/null").unwrap());
    assert!(MemfdSegment::from_fd(file).is_err());
}

#[test]
fn a_segment_can_be_shared_between_threads() {
    for create in backends() {
        let segment: Arc<dyn Segment> = create(LEN);
        let other = segment.clone();
        std::thread::spawn(move || fill(&*other, 0..1))
            .join()
            .unwrap();
        assert_eq!(bytes(&*segment)[0], 7);
    }
}

#[cfg(feature = "named")]
#[test]
fn a_named_segment_is_found_until_its_creator_drops_it() {
    use velo_shm::NamedSegment;

    let segment = NamedSegment::create(LEN).unwrap();
    let name = segment.name().to_owned();
    let other = NamedSegment::open(&name).unwrap();
    assert!(other.len() >= LEN);
    fill(&segment, 0..10);
    assert_eq!(bytes(&other)[9], 7);
    drop(NamedSegment::open(&name).unwrap());
    assert!(
        NamedSegment::open(&name).is_ok(),
        "only the creator unlinks"
    );
    drop(segment);
    assert!(matches!(
        NamedSegment::open(&name),
        Err(SegmentError::Open { .. })
    ));
    assert_eq!(bytes(&other)[9], 7);
}
