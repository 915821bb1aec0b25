//! A small HTTP/1.0 client: one request a connection, so that each request is a flow of its own.
//!
//! It runs in the namespace of the thread that calls it: see [`crate::netns::Namespace::run`].

use crate::pattern::Checker;
use anyhow::{Context, Result, bail, ensure};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Longest answer head that is read.
const HEAD: usize = 8 << 10;

/// The answer of a [`crate::nginx`] web server: its name and the client address it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Name of the backend.
    pub backend: String,
    /// Source address of the request as the backend saw it.
    pub client: String,
}

/// Asks a web server who it is.
///
/// # Errors
/// The error of the connection, or that the answer is not that of one of our web servers.
pub fn ask(server: SocketAddr, limit: Duration) -> io::Result<Answer> {
    let body = get(server, "/", limit)?;
    let mut words = body.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(backend), Some(client), None) => Ok(Answer {
            backend: backend.into(),
            client: client.into(),
        }),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("an answer that is none of ours: {body:?}"),
        )),
    }
}

/// Fetches a small text. `limit` bounds the connection and then each wait for data.
///
/// # Errors
/// The error of the connection, or that the answer is not a 200 of HTTP.
pub fn get(server: SocketAddr, path: &str, limit: Duration) -> io::Result<String> {
    let mut stream = request(server, path, limit)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if is_ok(head) => Ok(body.to_owned()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("no 200 answer: {answer:?}"),
        )),
    }
}

/// How a download went.
#[derive(Clone, Copy, Debug)]
pub struct Download {
    /// Bytes, each verified.
    pub bytes: u64,
    /// Time from the request to the last byte.
    pub time: Duration,
    /// Longest time without data.
    pub longest_pause: Duration,
}

/// Downloads a file of [`crate::pattern`] and verifies every byte. `progress` is the number of bytes so far.
///
/// # Errors
/// The error of the connection, a wait for data longer than `limit`, a wrong byte, or a number of bytes other than
/// the one announced.
pub fn download(
    server: SocketAddr,
    path: &str,
    limit: Duration,
    progress: &AtomicU64,
) -> Result<Download> {
    let start = Instant::now();
    let mut stream = request(server, path, limit)?;
    let (announced, mut rest) = read_head(&mut stream)?;
    let mut checker = Checker::default();
    let mut buffer = vec![0; 256 << 10];
    let mut longest_pause = Duration::ZERO;
    let mut last = Instant::now();
    loop {
        checker.check(&rest)?;
        progress.store(checker.position(), Ordering::Relaxed);
        let length = stream
            .read(&mut buffer)
            .with_context(|| format!("after {} bytes", checker.position()))?;
        longest_pause = longest_pause.max(last.elapsed());
        last = Instant::now();
        if length == 0 {
            break;
        }
        rest.clear();
        rest.extend_from_slice(&buffer[..length]);
    }
    ensure!(
        checker.position() == announced,
        "{} bytes came of {announced}",
        checker.position()
    );
    Ok(Download {
        bytes: announced,
        time: start.elapsed(),
        longest_pause,
    })
}

fn request(server: SocketAddr, path: &str, limit: Duration) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").as_bytes())?;
    Ok(stream)
}

fn is_ok(head: &str) -> bool {
    head.starts_with("HTTP/1.") && head.split(' ').nth(1) == Some("200")
}

/// Reads to the end of the head: the length it announces, and what came of the body with it.
fn read_head(stream: &mut TcpStream) -> Result<(u64, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 1 << 10];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        ensure!(
            bytes.len() < HEAD,
            "no end of the answer's head in {HEAD} bytes"
        );
        match stream.read(&mut piece)? {
            0 => bail!("the connection ended within the answer's head"),
            length => bytes.extend_from_slice(&piece[..length]),
        }
    };
    let body = bytes.split_off(end + 4);
    let head = String::from_utf8_lossy(&bytes);
    ensure!(is_ok(&head), "no 200 answer: {head:?}");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    });
    Ok((
        length.context("the answer does not announce its length")?,
        body,
    ))
}
