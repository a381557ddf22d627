//! `sendmsg` and `recvmsg` with descriptors. It never keeps a descriptor that it could not hand on.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};

/// The most descriptors that one message carries.
pub(super) const MAX_FDS: usize = 4;

/// What came beside the bytes.
#[derive(Debug)]
pub(super) enum Passed {
    Fd(OwnedFd),
    /// All that came with one message, for which this process had no room.
    Lost,
}

/// Room for control messages, aligned as the system wants its headers.
#[repr(C, align(8))]
struct ControlSpace([MaybeUninit<u8>; 256]);

pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        flags,
    )?)
}

/// Whether the error says that the peer is gone.
pub(super) fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// Sends once. A peer that is gone is an error, never a `SIGPIPE`.
pub(super) fn send(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(sendmsg::<()>(
        fd.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        flags,
        None,
    )?)
}

/// Receives once, and appends the descriptors that came. When the system had to leave some out, the
/// others are closed. One call brings the descriptors of one message at most: it stops behind the
/// bytes that they came with.
pub(super) fn receive(
    fd: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut VecDeque<Passed>,
) -> io::Result<usize> {
    let mut control = ControlSpace([MaybeUninit::uninit(); 256]);
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control.0) as _;
    // SAFETY: `header` points to one buffer of `bytes.len()` bytes and to a control area of the
    // length it gives; both outlive the call.
    let got = unsafe {
        libc::recvmsg(
            fd.as_raw_fd(),
            &raw mut header,
            libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT,
        )
    };
    let Ok(got) = usize::try_from(got) else {
        return Err(io::Error::last_os_error());
    };
    let received = take_fds(&header);
    if header.msg_flags & libc::MSG_CTRUNC != 0 || received.len() > MAX_FDS {
        fds.push_back(Passed::Lost);
    } else {
        fds.extend(received.into_iter().map(Passed::Fd));
    }
    Ok(got)
}

/// The descriptors in a header that `recvmsg` has filled.
fn take_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: `recvmsg` has filled the header, and its control area is still there.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !control.is_null() {
        // SAFETY: `control` is not null, so it points to a whole header inside the control area.
        let (level, kind, len) = unsafe {
            (
                (*control).cmsg_level,
                (*control).cmsg_type,
                (*control).cmsg_len as usize,
            )
        };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: it computes an offset from a length; no memory is read.
            let before = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = len.saturating_sub(before) / size_of::<RawFd>();
            for index in 0..count {
                // SAFETY: `count` descriptors follow this header. They need not be aligned.
                let fd = unsafe {
                    libc::CMSG_DATA(control)
                        .cast::<RawFd>()
                        .add(index)
                        .read_unaligned()
                };
                // SAFETY: the system has just opened it for us, and nobody else knows it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: header and control area are those that `control` came from.
        control = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
    fds
}
