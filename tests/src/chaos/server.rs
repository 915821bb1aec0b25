//! The server of a backend, a process of its own so that it can be killed: over TCP it says its name and answers every
//! byte, over UDP it answers a datagram with the same and its name.

use super::stream::{GREETING, answered, greeting};
use crate::{
    process::Process,
    topology::{Backend, VIP_V4},
    wait::wait_until,
};
use anyhow::{Context, Result, bail};
use std::{
    net::{self, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
};

/// Port over TCP, on every address.
pub(super) const TCP_PORT: u16 = 80;
/// Port over UDP.
pub(crate) const UDP_PORT: u16 = 443;
/// Bytes of a datagram: flow and number, both 64 bits in network byte order. The answer has the greeting behind them.
pub(super) const DATAGRAM: usize = 16;

/// Longest wait for a server to listen.
const START: Duration = Duration::from_secs(15);

/// Starts the server of a backend, which is in `program`, and waits until it listens. Its log is in `directory`.
///
/// # Errors
/// When it ends or does not listen; the error has its log.
pub(super) fn start(backend: &Backend, program: &Path, directory: &Path) -> Result<Process> {
    let Backend {
        name, namespace, ..
    } = backend;
    let mut command = namespace.command(program);
    command.args(["serve", name, &VIP_V4.to_string()]);
    let log = directory.join(format!("{name}.log"));
    let mut process = Process::start(&format!("server of {name}"), command, &log)?;
    wait_until("the server to listen", START, || {
        if let Some(status) = process.ended()? {
            bail!("the server of {name} ended ({status}): {}", process.log());
        }
        Ok(namespace.run(listens).then_some(()))
    })?;
    Ok(process)
}

fn listens() -> bool {
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, TCP_PORT));
    net::TcpStream::connect_timeout(&own, Duration::from_secs(1)).is_ok()
}

/// Serves until it is killed. `vip` is where it is asked over UDP, so that answers come from there.
///
/// # Errors
/// When it cannot listen.
pub(crate) fn run(name: &str, vip: Ipv4Addr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket
            .bind((Ipv4Addr::UNSPECIFIED, TCP_PORT).into())
            .context("cannot bind the TCP port")?;
        let listener = socket.listen(4_096)?;
        let udp = UdpSocket::bind(SocketAddr::from((vip, UDP_PORT)))
            .await
            .context("cannot bind the UDP port")?;
        tokio::join!(accept(listener, name), datagrams(udp, name));
        Ok(())
    })
}

async fn accept(listener: TcpListener, name: &str) {
    let hello = greeting(name);
    loop {
        match listener.accept().await {
            // A connection ends when the client ends it, or with an error that the client sees as well.
            Ok((stream, _)) => drop(tokio::spawn(converse(stream, hello))),
            Err(error) => {
                eprintln!("cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, hello: [u8; GREETING]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(&hello).await?;
    let mut position = 0;
    let mut buffer = [0; 4_096];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        for byte in &mut buffer[..length] {
            *byte = answered(*byte, position);
            position += 1;
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

async fn datagrams(socket: UdpSocket, name: &str) {
    let mut buffer = [0; DATAGRAM + GREETING];
    buffer[DATAGRAM..].copy_from_slice(&greeting(name));
    loop {
        match socket.recv_from(&mut buffer[..DATAGRAM]).await {
            // What is lost is asked again.
            Ok((DATAGRAM, from)) => drop(socket.send_to(&buffer, from).await),
            Ok(_) => {}
            Err(error) => eprintln!("cannot receive: {error}"),
        }
    }
}
