//! The service manager: the sockets it hands us, and what it hears from us.
//!
//! Without systemd nothing here does anything: no sockets are handed in, and every notice goes
//! nowhere.

use std::env;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Listening sockets that were open before we were: connections wait in them while we are not
/// there, so a restart refuses nobody.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For webhooks; there may be several, one per address family.
    pub hooks: Vec<TcpListener>,
    /// For consumers.
    pub feed: Option<UnixListener>,
    /// For operators.
    pub control: Option<UnixListener>,
}

/// Why the sockets handed in cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// A socket unit gives a name that we do not know.
    #[error(
        "systemd handed in a socket named {0:?}; write FileDescriptorName=hooks, feed or control in its unit"
    )]
    Unknown(String),
    /// There are two of a kind of which there can be one.
    #[error("systemd handed in two sockets named {0:?}; only hooks may have several")]
    Twice(&'static str),
    /// It is not what its name says.
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
    /// Takes what was handed to this process. To be called once, before anything is spawned.
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

/// We serve; `status` is what `systemctl status` shows.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What `systemctl status` shows from now on.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// A reload has begun; [`ready`] ends it.
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

/// We are on our way out.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Starting goes on, and may take so much longer.
pub fn starting(status: &str, longer: Duration) {
    let usec = u32::try_from(longer.as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::ExtendTimeoutUsec(usec),
        NotifyState::Status(status),
    ]);
}

/// Proof of life. Only to be sent when the writer has just answered.
pub fn alive(status: &str) {
    tell(&[NotifyState::Watchdog, NotifyState::Status(status)]);
}

/// How often systemd wants a proof of life at the least, if it wants any.
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
