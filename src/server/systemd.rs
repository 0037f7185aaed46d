//! The service manager: the sockets that systemd passes in, and the notices that the daemon sends.
//!
//! Without systemd nothing here has an effect: no sockets are passed in, and no notice is sent.

use std::env;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Listening sockets that systemd opened before the daemon started. Connections wait in them while the
/// daemon does not run, so a restart refuses no connection.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The webhook endpoint; there may be several sockets, one per address family.
    pub hooks: Vec<TcpListener>,
    /// The feed socket.
    pub feed: Option<UnixListener>,
    /// The control socket.
    pub control: Option<UnixListener>,
}

/// Why the sockets that systemd passed in cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// A socket unit gives an unknown name.
    #[error(
        "systemd handed in a socket named {0:?}; write FileDescriptorName=hooks, feed or control in its unit"
    )]
    Unknown(String),
    /// Two sockets have a name that only one may have.
    #[error("systemd handed in two sockets named {0:?}; only hooks may have several")]
    Twice(&'static str),
    /// The socket is not of the kind that its name means.
    #[error(
        "the socket named {name:?} cannot be used: {source}; hooks is TCP, feed and control are Unix streams"
    )]
    Unusable {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
}

impl Inherited {
    /// Takes the sockets that systemd passed to this process. Call it once, before anything is spawned.
    pub fn take() -> Result<Inherited, InheritError> {
        // Read first: taking the descriptors removes the variables that belong to them.
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut handed = ListenFd::from_env();
        let mut inherited = Inherited::default();
        for index in 0..handed.len() {
            inherited.adopt(&mut handed, index, names.next().unwrap_or_default())?;
        }
        Ok(inherited)
    }

    fn adopt(
        &mut self,
        handed: &mut ListenFd,
        index: usize,
        name: String,
    ) -> Result<(), InheritError> {
        let unusable = |source| InheritError::Unusable {
            name: name.clone(),
            source,
        };
        match name.as_str() {
            "hooks" => self
                .hooks
                .extend(handed.take_tcp_listener(index).map_err(unusable)?),
            "feed" => once(
                "feed",
                &mut self.feed,
                handed.take_unix_listener(index).map_err(unusable)?,
            )?,
            "control" => once(
                "control",
                &mut self.control,
                handed.take_unix_listener(index).map_err(unusable)?,
            )?,
            _ => return Err(InheritError::Unknown(name)),
        }
        Ok(())
    }
}

fn once(
    name: &'static str,
    place: &mut Option<UnixListener>,
    socket: Option<UnixListener>,
) -> Result<(), InheritError> {
    if place.is_some() {
        return Err(InheritError::Twice(name));
    }
    *place = socket;
    Ok(())
}

/// Notifies systemd that the daemon serves; `systemctl status` shows `status`.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Sets the line that `systemctl status` shows from now on.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Notifies systemd that a reload has begun; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[
            NotifyState::Reloading,
            now,
            NotifyState::Status("Reloading the configuration"),
        ]),
        Err(error) => {
            tracing::warn!(%error, "no monotonic clock; systemd is not told of the reload");
        }
    }
}

/// Notifies systemd that the daemon is stopping.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Notifies systemd that the start continues, and may take this much longer.
pub fn starting(status: &str, longer: Duration) {
    let usec = u32::try_from(longer.as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::ExtendTimeoutUsec(usec),
        NotifyState::Status(status),
    ]);
}

/// Notifies the watchdog. Call it only when the writer has just committed.
pub fn alive(status: &str) {
    tell(&[NotifyState::Watchdog, NotifyState::Status(status)]);
}

/// The longest time between two watchdog notices that systemd accepts; `None` without a watchdog.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_systemd_nothing_is_handed_in() {
        let inherited = Inherited::take().unwrap();
        assert!(
            inherited.hooks.is_empty() && inherited.feed.is_none() && inherited.control.is_none()
        );
    }

    #[test]
    fn a_name_stands_for_one_socket() {
        let mut place = None;
        let folder = tempfile::tempdir().unwrap();
        let socket = |name| UnixListener::bind(folder.path().join(name)).unwrap();
        once("feed", &mut place, Some(socket("a"))).unwrap();
        let error = once("feed", &mut place, Some(socket("b"))).unwrap_err();
        assert!(error.to_string().contains("\"feed\""), "{error}");
    }
}
