//! The API's unix socket: made so that nobody but root and one group can ever connect, and so that a daemon that
//! runs is never pushed aside.

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_to, connect, listen,
            socket,
        },
        stat::{Mode, fchmod},
    },
    unistd::{Gid, Group, chown},
};
use std::{
    fs::{self, DirBuilder, Permissions},
    io::ErrorKind,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    },
    path::Path,
};
use tokio::net::UnixListener;

/// Where `lbd` listens and `lbctl` asks unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/guideway/lbd.sock";

/// Connections the kernel holds for us while we serve as many as we want to.
const BACKLOG: i32 = 128;

/// A socket at `path` that root may use and, if one is given, the members of `group`. The directory is made if it is
/// missing; a socket that nobody listens on any more is replaced.
///
/// Must be called within a tokio runtime.
///
/// # Errors
/// When another daemon listens there, when what is there is not a socket, when the group does not exist, and when
/// the file system refuses.
pub fn bind(path: &Path, group: Option<&str>) -> Result<UnixListener> {
    let group = group.map(group_id).transpose()?;
    make_directory(path)?;
    remove_stale(path)?;
    listen_at(path, group).with_context(|| format!("cannot listen on {}", path.display()))
}

fn group_id(name: &str) -> Result<Gid> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => bail!(
            "there is no group {name:?}: create it with `groupadd --system {name}`, or name another"
        ),
        Err(error) => bail!("cannot look up the group {name:?}: {error}"),
    }
}

fn make_directory(path: &Path) -> Result<()> {
    let Some(directory) = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
    else {
        return Ok(());
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .with_context(|| {
            format!(
                "cannot make the directory {} for the API socket",
                directory.display()
            )
        })
}

/// Removes a socket that refuses connections; anything else that is in the way is an error.
fn remove_stale(path: &Path) -> Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look at {}", path.display()));
        }
    };
    if !kind.is_socket() {
        bail!(
            "{} exists and is not a socket: move it away, or name another socket",
            path.display()
        );
    }
    let probe = new_socket()?;
    match connect(probe.as_raw_fd(), &address(path)?) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path)
            .with_context(|| format!("cannot remove the stale socket {}", path.display())),
        // EAGAIN: its backlog is full, so somebody holds it open.
        Ok(()) | Err(Errno::EAGAIN) => {
            bail!(
                "another lbd answers on {}: stop it first, or name another socket",
                path.display()
            )
        }
        Err(error) => bail!("cannot tell whether {} is in use: {error}", path.display()),
    }
}

/// A connection is refused until `listen`, which comes after owner and mode are right; and the file is made with
/// mode 0600 because Linux takes the mode of the unbound socket. So there is no moment in which others can connect.
fn listen_at(path: &Path, group: Option<Gid>) -> Result<UnixListener> {
    let socket = new_socket()?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind_to(socket.as_raw_fd(), &address(path)?)?;
    if let Some(group) = group {
        chown(path, None, Some(group)).context("cannot give the socket to the group")?;
        fs::set_permissions(path, Permissions::from_mode(0o660))?;
    }
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from_std(socket.into())?)
}

fn new_socket() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None).context("cannot make a unix socket")
}

fn address(path: &Path) -> Result<UnixAddr> {
    UnixAddr::new(path).with_context(|| {
        format!(
            "{} is not a path a socket can have (at most 107 bytes)",
            path.display()
        )
    })
}
