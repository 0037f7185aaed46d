//! The listeners: sockets that systemd passed in, or that are made here.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::config::Config;
use crate::limits;
use crate::server::systemd::{InheritError, Inherited};

/// Why the daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address of the webhook endpoint cannot be bound.
    #[error("cannot listen for webhooks on {address}: {source}; is another program using it?")]
    Hooks {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A Unix socket cannot be made.
    #[error("cannot make the socket {path}: {source}")]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process answers on a socket that should be ours.
    #[error("another process is serving {0}; stop it, or name other [sockets]")]
    InUse(PathBuf),
    /// A socket that systemd passed in is not the one its name says.
    #[error(transparent)]
    Inherited(#[from] InheritError),
    /// A socket that systemd passed in does not work.
    #[error("a socket from systemd cannot be used: {0}")]
    Broken(io::Error),
}

/// Every listener of the daemon.
pub struct Listeners {
    /// The webhook endpoint: at least one listener.
    pub hooks: Vec<TcpListener>,
    /// The address of the first of them.
    pub address: SocketAddr,
    /// The feed socket, for consumers.
    pub feed: UnixListener,
    /// The control socket, for operators.
    pub control: UnixListener,
    /// Paths of sockets that the daemon made and removes when it stops.
    pub ours: Vec<PathBuf>,
}

impl Listeners {
    /// Takes the sockets that systemd passed in and makes the rest.
    pub fn open(config: &Config, inherited: Inherited) -> Result<Listeners, ListenError> {
        let mut hooks = Vec::new();
        for socket in inherited.hooks {
            hooks.push(adopt_tcp(socket).map_err(ListenError::Broken)?);
        }
        if hooks.is_empty() {
            let address = config.hooks.listen;
            let wrong = |source| ListenError::Hooks { address, source };
            hooks.push(bind_tcp(address).map_err(wrong)?);
        } else {
            tell_apart(&hooks, config.hooks.listen);
        }
        let address = hooks[0].local_addr().map_err(ListenError::Broken)?;
        let mut ours = Vec::new();
        let feed = adopt_unix(
            inherited.feed,
            &config.sockets.feed,
            config.sockets.feed_group.as_deref(),
            &mut ours,
        )?;
        let control = adopt_unix(
            inherited.control,
            &config.sockets.control,
            config.sockets.control_group.as_deref(),
            &mut ours,
        )?;
        Ok(Listeners {
            hooks,
            address,
            feed,
            control,
            ours,
        })
    }
}

/// Logs a difference between the sockets from systemd and the configured address.
fn tell_apart(hooks: &[TcpListener], configured: SocketAddr) {
    let addresses: Vec<String> = hooks
        .iter()
        .filter_map(|socket| socket.local_addr().ok())
        .map(|address| address.to_string())
        .collect();
    if !addresses.contains(&configured.to_string()) {
        tracing::warn!(
            %configured,
            inherited = addresses.join(", "),
            "the webhook sockets come from systemd, so hooks.listen is not used; edit settled-hooks.socket instead"
        );
    }
}

/// Binds with a backlog that holds a burst of connections until they are accepted. A connection that
/// the system drops there comes again after seconds at the earliest, and each time later.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(limits::HOOK_BACKLOG)
}

fn adopt_tcp(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

fn adopt_unix(
    inherited: Option<std::os::unix::net::UnixListener>,
    path: &Path,
    group: Option<&str>,
    ours: &mut Vec<PathBuf>,
) -> Result<UnixListener, ListenError> {
    if let Some(socket) = inherited {
        socket.set_nonblocking(true).map_err(ListenError::Broken)?;
        return UnixListener::from_std(socket).map_err(ListenError::Broken);
    }
    let socket = bind(path, group)?;
    ours.push(path.to_owned());
    Ok(socket)
}

/// Makes a Unix socket. A stale file is replaced, a live one is not.
fn bind(path: &Path, group: Option<&str>) -> Result<UnixListener, ListenError> {
    let wrong = |source| ListenError::Socket {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(wrong)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::InUse(path.to_owned()));
        }
        fs::remove_file(path).map_err(wrong)?;
    }
    let listener = private(|| UnixListener::bind(path)).map_err(wrong)?;
    if let Some(name) = group {
        let unknown = || io::Error::other(format!("there is no group {name:?} on this machine"));
        let group = uzers::get_group_by_name(name).ok_or_else(unknown);
        group
            .and_then(|group| chown(path, None, Some(group.gid())))
            .map_err(wrong)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(wrong)?;
    Ok(listener)
}

/// Runs `make` so that the file it makes is private from the first moment, before its mode is set.
fn private<T>(make: impl FnOnce() -> T) -> T {
    let before = umask(Mode::RWXG | Mode::RWXO);
    let made = make();
    umask(before);
    made
}
