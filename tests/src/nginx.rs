//! A web server on a backend: nginx with a configuration, files and logs of its own, never the system's service.
//!
//! `/` answers with the backend's name and the client's address as the backend saw it; `/large` is a file of
//! [`crate::pattern`]; `/slow` is the same file, paced.

use crate::{process::Process, topology::Backend, wait::wait_until};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

/// Port the web servers listen on.
pub const PORT: u16 = 80;

/// Name of the large file in the directory that the web servers share.
pub const LARGE_FILE: &str = "large";

/// Starts the web server of a backend and waits until it listens. `directory` is shared by all backends.
///
/// # Errors
/// When it ends or does not listen; the error has its log.
pub fn start(backend: &Backend, directory: &Path) -> Result<Process> {
    let own = directory.join(&backend.name);
    fs::create_dir_all(&own).with_context(|| format!("cannot create {}", own.display()))?;
    let config = own.join("nginx.conf");
    fs::write(
        &config,
        configuration(&backend.name, &own, &directory.join(LARGE_FILE)),
    )?;
    let errors = own.join("error.log");
    let mut command = backend.namespace.command("nginx");
    command
        .arg("-p")
        .arg(&own)
        .arg("-e")
        .arg(&errors)
        .arg("-c")
        .arg(&config);
    let mut process = Process::start(
        &format!("nginx of {}", backend.name),
        command,
        &own.join("output.log"),
    )?;
    wait_until(
        &format!("nginx of {} to listen", backend.name),
        Duration::from_secs(10),
        || {
            if let Some(status) = process.ended()? {
                bail!(
                    "nginx of {} ended ({status}): {}",
                    backend.name,
                    fs::read_to_string(&errors).unwrap_or_default()
                );
            }
            Ok(backend.namespace.run(listens).then_some(()))
        },
    )?;
    Ok(process)
}

fn listens() -> bool {
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    TcpStream::connect_timeout(&own, Duration::from_secs(1)).is_ok()
}

fn configuration(name: &str, directory: &Path, large: &Path) -> String {
    let (directory, large) = (directory.display(), large.display());
    format!(
        "daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    default_type text/plain;
    server {{
        listen {PORT} backlog=4096;
        listen [::]:{PORT} ipv6only=on backlog=4096;
        location / {{ return 200 \"{name} $remote_addr\\n\"; }}
        location = /large {{ alias {large}; }}
        location = /slow {{ alias {large}; limit_rate 40m; }}
    }}
}}
"
    )
}
