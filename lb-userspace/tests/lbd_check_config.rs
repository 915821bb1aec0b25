//! The real `lbd check-config` as a process.

use std::{fs, process::Command};

/// Exit code, standard output and standard error for the text of a configuration, with its path as `FILE`.
fn check(text: &str, variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lbd.yaml");
    fs::write(&file, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lbd"))
        .env_clear()
        .envs(variables.iter().copied())
        .args(["check-config", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    let plain = |text: Vec<u8>| {
        let text = String::from_utf8(text).unwrap();
        text.replace(&file.display().to_string(), "FILE")
    };
    (
        output.status.code(),
        plain(output.stdout),
        plain(output.stderr),
    )
}

#[test]
fn an_interface_that_does_not_exist_is_a_warning() {
    let good = check("interfaces: [{ name: lo }]", &[]);
    assert_eq!(good, (Some(0), "FILE: ok\n".into(), String::new()));

    let (code, said, warned) = check("interfaces: [{ name: lo }, { name: nosuch0 }]", &[]);
    assert_eq!((code, said.as_str()), (Some(0), "FILE: ok\n"));
    let start = "warning: FILE: interfaces[1].name: no such interface (given: nosuch0); ";
    assert!(warned.starts_with(start), "{warned}");
    let (_, here) = warned.split_once("interfaces here: ").unwrap();
    assert!(here.trim().split(", ").any(|name| name == "lo"), "{warned}");
}

#[test]
fn a_log_filter_that_lbd_would_refuse_is_refused() {
    let text = "interfaces: [{ name: lo }]";
    for (variables, source) in [
        (vec![("GUIDEWAY_LOG", "inof")], "GUIDEWAY_LOG"),
        (vec![("RUST_LOG", "inof")], "RUST_LOG"),
    ] {
        let (code, said, error) = check(text, &variables);
        assert_eq!((code, said.as_str()), (Some(1), ""));
        let start = format!("error: {source}: `inof` is not a log filter; ");
        assert!(error.starts_with(&start), "{error}");
    }
    let both = [("GUIDEWAY_LOG", "debug"), ("RUST_LOG", "inof")];
    assert_eq!(check(text, &both).0, Some(0));
}
