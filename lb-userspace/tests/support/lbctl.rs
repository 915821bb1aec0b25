//! The real `lbctl` as a process.

use super::FakeLbd;
use std::{
    io::Write,
    process::{Command, Stdio},
};

/// What a run of `lbctl` left.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// `lbctl` with the socket of `lbd` and an environment of its own.
pub fn command(lbd: &FakeLbd, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
    command
        .env_clear()
        .env("GUIDEWAY_SOCKET", lbd.socket())
        .current_dir(lbd.directory());
    command.args(args.split_whitespace());
    command
}

/// Runs `lbctl` with arguments that are separated by blanks.
pub fn lbctl(lbd: &FakeLbd, args: &str) -> Run {
    run(command(lbd, args), "")
}

/// Runs a command to its end with `input` on its standard input.
pub fn run(mut command: Command, input: &str) -> Run {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code().expect("it was not killed"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
