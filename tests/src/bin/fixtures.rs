//! `cargo xtask test --list-fixtures`: the name and the description of every fixture.

use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
};

fn main() -> ExitCode {
    let all = lb_tests::fixtures::all();
    let mut out = BufWriter::new(io::stdout().lock());
    let written = all
        .iter()
        .try_for_each(|fixture| writeln!(out, "{}: {}", fixture.name, fixture.description))
        .and_then(|()| writeln!(out, "{} fixtures", all.len()))
        .and_then(|()| out.flush());
    match written {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the list has read enough, such as `head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot print the list: {error}");
            ExitCode::FAILURE
        }
    }
}
