//! Frames over real sockets: whole, torn, hostile, and with descriptors.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

fn channels() -> (Channel<OwnedFd>, Channel<OwnedFd>) {
    let (one, other) = pair().expect("a socketpair");
    (
        Channel::new(one).expect("a channel"),
        Channel::new(other).expect("a channel"),
    )
}

/// A channel and a bare socket on its other end.
fn hostile() -> (Channel<OwnedFd>, UnixStream) {
    let (one, other) = pair().expect("a socketpair");
    (
        Channel::new(one).expect("a channel"),
        UnixStream::from(other),
    )
}

fn frame(magic: u16, fds: u16, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_le_bytes().to_vec();
    bytes.extend(fds.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(payload);
    bytes
}

#[test]
fn messages_arrive_in_order_with_their_own_descriptors() {
    let (mut here, mut there) = channels();
    let (left, mut right) = std::io::pipe().expect("a pipe");
    here.send(&"first", vec![]).expect("send");
    here.send(&"second", vec![OwnedFd::from(left)])
        .expect("send");
    here.send(&"third", vec![]).expect("send");
    let mut seen = Vec::new();
    let mut pipes = Vec::new();
    while let Received::Message(text, fds) = there.receive::<String>().expect("receive") {
        seen.push((text, fds.len()));
        pipes.extend(fds);
    }
    assert_eq!(
        seen,
        [
            ("first".into(), 0),
            ("second".into(), 1),
            ("third".into(), 0)
        ]
    );
    right.write_all(b"x").expect("write to the passed pipe");
    let mut byte = [0];
    std::fs::File::from(pipes.remove(0))
        .read_exact(&mut byte)
        .expect("read from the passed pipe");
    assert_eq!(&byte, b"x");
}

#[test]
fn a_large_message_goes_through_in_pieces() {
    let (mut here, mut there) = channels();
    let text = "v".repeat(MAX_MESSAGE - 8);
    here.send(&text, vec![]).expect("send");
    assert!(here.has_output(), "a socket buffer does not hold it all");
    loop {
        here.flush().expect("flush");
        match there.receive::<String>().expect("receive") {
            Received::Message(got, _) => break assert_eq!(got, text),
            Received::Empty => {}
            Received::Closed => panic!("closed"),
        }
    }
    assert!(!here.has_output());
}

#[test]
fn too_large_a_message_is_refused_before_it_is_sent() {
    let (mut here, _there) = channels();
    let error = here
        .send(&"v".repeat(MAX_MESSAGE), vec![])
        .expect_err("too large");
    assert!(matches!(error, TransportError::TooLarge { .. }), "{error}");
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let (mut here, _there) = channels();
    let text = "v".repeat(MAX_MESSAGE / 2);
    let error = (0..64)
        .find_map(|_| here.send(&text, vec![]).err())
        .expect("a bound");
    assert!(matches!(error, TransportError::Stalled(_)), "{error}");
}

#[test]
fn a_torn_frame_waits_for_its_rest() {
    let (mut here, mut there) = hostile();
    let payload = rmp_serde::to_vec_named("torn").expect("encode");
    let bytes = frame(MAGIC, 0, payload.len() as u32, &payload);
    for byte in &bytes[..bytes.len() - 1] {
        there.write_all(&[*byte]).expect("write");
        assert!(matches!(here.receive::<String>(), Ok(Received::Empty)));
    }
    there.write_all(&bytes[bytes.len() - 1..]).expect("write");
    assert!(matches!(here.receive::<String>(), Ok(Received::Message(text, _)) if text == "torn"));
}

#[test]
fn an_end_is_clean_only_between_messages() {
    let (mut here, there) = hostile();
    drop(there);
    assert!(matches!(here.receive::<String>(), Ok(Received::Closed)));
    let (mut here, mut there) = hostile();
    there
        .write_all(&frame(MAGIC, 0, 9, b"half"))
        .expect("write");
    drop(there);
    assert!(matches!(
        here.receive::<String>(),
        Err(TransportError::Truncated)
    ));
}

#[test]
fn what_is_not_ours_is_named() {
    let cases: [(Vec<u8>, &str); 5] = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "not velo"),
        (frame(MAGIC, 0, u32::MAX, b""), "over the limit"),
        (frame(MAGIC, 9, 0, b""), "file descriptors"),
        (frame(MAGIC, 1, 1, &[0]), "lost on the way"),
        (frame(MAGIC, 0, 1, &[0xc1]), "could not be read"),
    ];
    for (bytes, expected) in cases {
        let (mut here, mut there) = hostile();
        there.write_all(&bytes).expect("write");
        let error = here.receive::<String>().expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn trailing_bytes_in_a_message_are_an_error() {
    let (mut here, mut there) = hostile();
    let mut payload = rmp_serde::to_vec_named("text").expect("encode");
    payload.push(0);
    there
        .write_all(&frame(MAGIC, 0, payload.len() as u32, &payload))
        .expect("write");
    assert!(matches!(
        here.receive::<String>(),
        Err(TransportError::Decode(_))
    ));
}

#[test]
fn sending_to_a_closed_peer_is_closed() {
    let (mut here, there) = channels();
    drop(there);
    assert!(matches!(
        here.send(&"late", vec![]),
        Err(TransportError::Closed)
    ));
}

#[test]
fn descriptors_that_are_lost_cost_their_own_message_alone() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd;

    let (mut channel, peer) = hostile();
    let text = rmp_serde::to_vec("first").expect("text");
    let first = frame(MAGIC, 2, text.len() as u32, &text);
    // More than there is room for: the system leaves some out, as it does when a process may not
    // have more of them.
    let many = vec![peer.as_raw_fd(); 200];
    let passed = [ControlMessage::ScmRights(&many)];
    let bytes = [std::io::IoSlice::new(&first)];
    sendmsg::<()>(peer.as_raw_fd(), &bytes, &passed, MsgFlags::empty(), None).expect("send");
    let text = rmp_serde::to_vec("second").expect("text");
    let second = frame(MAGIC, 1, text.len() as u32, &text);
    let bytes = [std::io::IoSlice::new(&second)];
    let passed = [ControlMessage::ScmRights(&many[..1])];
    sendmsg::<()>(peer.as_raw_fd(), &bytes, &passed, MsgFlags::empty(), None).expect("send");
    let mut seen = Vec::new();
    while let Received::Message(text, fds) = channel.receive::<String>().expect("receive") {
        seen.push((text, fds.len()));
    }
    assert_eq!(seen, [("first".into(), 0), ("second".into(), 1)]);
}
