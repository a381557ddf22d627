//! Notifications to systemd, or to another service manager that asks for them.

/// Tells the service manager that clients can connect.
pub(crate) fn say_ready() {
    notify(sd_notify::NotifyState::Ready);
}

/// Tells the service manager that this process is about to end.
pub(crate) fn say_stopping() {
    notify(sd_notify::NotifyState::Stopping);
}

fn notify(state: sd_notify::NotifyState<'_>) {
    // No error where no service manager has asked.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "could not notify the service manager");
    }
}
