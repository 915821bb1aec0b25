//! The smallest service that shows whether packets arrive as they were sent: it gives back what it gets.

use crate::netns::Namespace;
use anyhow::{Context, Result, ensure};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

/// How long a client waits for anything.
const LIMIT: Duration = Duration::from_secs(20);

/// Serves TCP and UDP on an address of this namespace until the program ends.
///
/// # Errors
/// When the address cannot be listened on.
pub fn serve(namespace: &Namespace, address: SocketAddr) -> Result<()> {
    let bind = || -> io::Result<_> { Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?)) };
    let (tcp, udp) = namespace
        .run(bind)
        .with_context(|| format!("cannot serve on {address}"))?;
    accept(tcp);
    thread::spawn(move || {
        let mut buffer = [0; 2_048];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..length], from);
        }
    });
    Ok(())
}

/// As [`serve`], over TCP alone, so that the address may be that of all.
///
/// # Errors
/// When the address cannot be listened on.
pub fn serve_tcp(namespace: &Namespace, address: SocketAddr) -> Result<()> {
    let tcp = namespace.run(|| TcpListener::bind(address));
    accept(tcp.with_context(|| format!("cannot serve on {address}"))?);
    Ok(())
}

fn accept(tcp: TcpListener) {
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            // A client that goes away is its own business.
            thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
}

/// Sends `bytes` bytes over TCP and expects them back.
///
/// # Errors
/// When they do not come, or others do.
pub fn ask_tcp(namespace: &Namespace, server: SocketAddr, bytes: usize) -> Result<()> {
    let sent = pattern(bytes);
    let received = namespace.run(|| -> Result<Vec<u8>> {
        let stream = TcpStream::connect_timeout(&server, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let writer = stream.try_clone()?;
        let copy = sent.clone();
        let writing = thread::spawn(move || (&writer).write_all(&copy));
        let mut received = vec![0; bytes];
        (&stream).read_exact(&mut received)?;
        writing.join().ok().context("the writer panicked")??;
        Ok(received)
    });
    let received = received.with_context(|| format!("{bytes} bytes over TCP through {server}"))?;
    ensure!(received == sent, "other bytes came back from {server}");
    Ok(())
}

/// Sends one datagram with `bytes` bytes and expects it back.
///
/// # Errors
/// When it does not come, or another does.
pub fn ask_udp(namespace: &Namespace, server: SocketAddr, bytes: usize) -> Result<()> {
    let sent = pattern(bytes);
    let received = namespace.run(|| -> Result<Vec<u8>> {
        let any = if server.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.connect(server)?;
        socket.send(&sent)?;
        let mut buffer = vec![0; bytes + 1];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    });
    let received = received.with_context(|| format!("{bytes} bytes over UDP through {server}"))?;
    ensure!(received == sent, "other bytes came back from {server}");
    Ok(())
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect()
}
