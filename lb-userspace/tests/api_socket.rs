//! The API's socket: who may use it, and what it never pushes aside.

use lb_userspace::api::{handle::Handle, server};
use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
        net::UnixStream,
    },
    path::Path,
    time::Duration,
};
use tokio::{net::UnixListener, time::timeout};

fn refused(path: &Path, group: Option<&str>) -> String {
    format!("{:#}", server::bind(path, group).unwrap_err())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The group of this process, which it may always give a file to.
fn own_group() -> nix::unistd::Group {
    nix::unistd::Group::from_gid(nix::unistd::getegid())
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn without_a_group_only_the_owner_may_connect() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("made/on/the/way/lbd.sock");
    let _listener = server::bind(&socket, None).unwrap();
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(
        mode(socket.parent().unwrap()) & 0o022,
        0,
        "others may not put a socket in its place"
    );
    UnixStream::connect(&socket).unwrap();
}

#[tokio::test]
async fn a_group_may_connect_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("lbd.sock");
    let _listener = server::bind(&socket, Some(&own_group().name)).unwrap();
    assert_eq!(mode(&socket), 0o660);
    assert_eq!(
        fs::metadata(&socket).unwrap().gid(),
        own_group().gid.as_raw()
    );
}

#[tokio::test]
async fn a_group_that_does_not_exist_is_an_error_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("lbd.sock");
    let error = refused(&socket, Some("no-such-group"));
    let hint = "create it with `groupadd --system no-such-group`, or name another";
    assert_eq!(
        error,
        format!("there is no group \"no-such-group\": {hint}")
    );
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("lbd.sock");
    drop(server::bind(&socket, None).unwrap());
    assert!(fs::metadata(&socket).unwrap().file_type().is_socket());
    let _listener = server::bind(&socket, None).unwrap();
    UnixStream::connect(&socket).unwrap();
}

#[tokio::test]
async fn a_daemon_that_runs_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("lbd.sock");
    let _listener = server::bind(&socket, None).unwrap();
    let expected = format!(
        "another lbd answers on {}: stop it first, or name another socket",
        socket.display()
    );
    assert_eq!(refused(&socket, None), expected);
    UnixStream::connect(&socket).unwrap();
}

#[tokio::test]
async fn a_daemon_too_busy_to_accept_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("lbd.sock");
    let listener = server::bind(&socket, None).unwrap();
    let mut waiting = Vec::new();
    // Fill the backlog; nobody accepts.
    while let Ok(stream) = timeout(
        Duration::from_millis(100),
        tokio::net::UnixStream::connect(&socket),
    )
    .await
    {
        match stream {
            Ok(stream) => waiting.push(stream),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
        assert!(waiting.len() < 10_000);
    }
    assert!(refused(&socket, None).starts_with("another lbd answers on "));
    drop(listener);
}

#[tokio::test]
async fn what_is_not_a_socket_is_never_removed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    let link = directory.path().join("link");
    symlink(&file, &link).unwrap();
    for path in [&file, &link, &directory.path().to_owned()] {
        assert!(
            refused(path, None).contains("exists and is not a socket"),
            "{}",
            path.display()
        );
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(link.is_symlink());
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("x".repeat(120));
    assert!(refused(&socket, None).contains("is not a path a socket can have (at most 107 bytes)"));
}

#[tokio::test]
async fn serving_stops_when_asked_to_whatever_clients_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("lbd.sock");
    let listener: UnixListener = server::bind(&socket, None).unwrap();
    let (handle, _requests) = Handle::new(1);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(server::serve(listener, handle, async {
        drop(stopped.await)
    }));
    let _silent = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stop.send(()).unwrap();
    timeout(Duration::from_secs(10), server)
        .await
        .expect("it stops in time")
        .unwrap();
    assert_eq!(
        UnixStream::connect(&socket).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
}
