//! A state directory that cannot be used is refused in terms of the configuration.

use lb_userspace::desired::Store;
use std::{fs, path::Path};

fn refused(directory: &Path) -> String {
    format!("{:#}", Store::open(directory).unwrap_err())
}

#[test]
fn what_cannot_be_made_or_written_is_named_with_the_remedy() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    let below_file = file.join("state");
    // Not even root can write to a file that is a directory.
    let unwritable = place.path().join("unwritable");
    fs::create_dir_all(unwritable.join("lbd.lock")).unwrap();
    for (directory, what) in [(below_file, "made"), (unwritable, "written")] {
        let said = refused(&directory);
        let start = format!(
            "state_directory {} cannot be {what}; name a directory that lbd may write to, ",
            directory.display()
        );
        assert!(said.starts_with(&start), "{said}");
        assert!(said.contains("(os error "), "{said}");
    }
}
