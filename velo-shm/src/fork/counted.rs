//! Forks where parent and child share no memory: they are counted, and nothing else.

/// Has forks of this process counted by [`generation`](super::generation).
#[cfg(unix)]
pub(crate) fn watch() {
    static HANDLER: std::sync::Once = std::sync::Once::new();
    HANDLER.call_once(|| {
        // SAFETY: the handler is a function of this library, which is never unloaded: a Python
        // extension stays for as long as its process, and so does a program.
        unsafe { nix::libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

#[cfg(unix)]
unsafe extern "C" fn in_child() {
    super::generation::forked();
}

/// There are no forks here.
#[cfg(not(unix))]
pub(crate) fn watch() {}
