//! The recipes of a document: its fenced blocks, by heading, so that a test can run what people read.

use crate::{node::Node, require};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// A file: its name and what is in it.
    File(String, String),
    /// Commands for a shell.
    Shell(String),
    /// Commands for a shell on each of these hosts, one after the other.
    On(Vec<String>, String),
}

/// The blocks under every heading of level 2 of a document in Markdown.
///
/// # Errors
/// When a block does not end, stands before the first heading, or is none of `sh`, `sh HOST,HOST` and `yaml NAME`.
pub fn sections(text: &str) -> Result<BTreeMap<String, Vec<Block>>> {
    let mut sections: BTreeMap<String, Vec<Block>> = BTreeMap::new();
    let mut heading = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = Some(title.to_owned());
        }
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let mut content = String::new();
        loop {
            match lines.next() {
                Some("```") => break,
                Some(line) => content += &format!("{line}\n"),
                None => bail!("the block ```{info} does not end"),
            }
        }
        let block = match info.split_once(' ') {
            Some(("yaml", name)) => Block::File(name.to_owned(), content),
            Some(("sh", hosts)) => {
                Block::On(hosts.split(',').map(str::to_owned).collect(), content)
            }
            None if info == "sh" => Block::Shell(content),
            _ => bail!("the block ```{info} is none of `sh`, `sh HOST,HOST` and `yaml NAME`"),
        };
        let heading = heading
            .clone()
            .with_context(|| format!("the block ```{info} stands before the first heading"))?;
        sections.entry(heading).or_default().push(block);
    }
    Ok(sections)
}

/// A recipe on its way: blocks are run one by one, in their order, as a person would type them into one shell.
#[derive(Debug)]
pub struct Recipe {
    blocks: std::vec::IntoIter<Block>,
    directory: PathBuf,
    socket: PathBuf,
    path: OsString,
}

impl Recipe {
    /// The recipe under `heading`, with `lbctl` talking to `node`; its files will be in `directory`.
    ///
    /// # Errors
    /// When there is no such heading, or the document cannot be taken apart.
    pub fn new(document: &str, heading: &str, node: &Node, directory: PathBuf) -> Result<Self> {
        let blocks = sections(document)?.remove(heading);
        let blocks = blocks.with_context(|| format!("no recipe {heading}"))?;
        let lbctl = require::built("lbctl")?;
        let programs = lbctl.parent().context("lbctl is in no directory")?;
        let before = env::var_os("PATH").unwrap_or_default();
        let path = [programs.to_owned()]
            .into_iter()
            .chain(env::split_paths(&before));
        fs::create_dir_all(&directory)?;
        Ok(Self {
            blocks: blocks.into_iter(),
            directory,
            socket: node.socket(),
            path: env::join_paths(path)?,
        })
    }

    /// Writes the files before the next commands, and runs these; what they write to standard output.
    ///
    /// # Errors
    /// When a command fails or does not end within `limit`, or nothing is left.
    pub fn step(&mut self, limit: Duration) -> Result<String> {
        self.start()?.end(limit)
    }

    /// As [`Recipe::step`], without waiting for the end.
    ///
    /// # Errors
    /// When the shell cannot be started, or nothing is left.
    pub fn start(&mut self) -> Result<Step> {
        let commands = loop {
            match self.blocks.next().context("the recipe has no more steps")? {
                Block::File(name, content) => fs::write(self.directory.join(name), content)?,
                Block::Shell(commands) => break commands,
                Block::On(hosts, _) => bail!("a block is for {hosts:?}; a recipe has one host"),
            }
        };
        // Variables live on from block to block.
        let script = format!(
            "set -eua\nif [ -e .variables ]; then . ./.variables; fi\n{commands}export -p > .variables\n"
        );
        let output = fs::File::create(self.directory.join(".output"))?;
        let errors = fs::File::create(self.directory.join(".errors"))?;
        let child = Command::new("sh")
            .args(["-c", &script])
            .current_dir(&self.directory)
            .env("GUIDEWAY_SOCKET", &self.socket)
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()?;
        Ok(Step {
            child,
            commands,
            directory: self.directory.clone(),
        })
    }

    /// Expects that every block has been run.
    ///
    /// # Errors
    /// When one has not.
    pub fn finish(self) -> Result<()> {
        let rest = self.blocks.len();
        ensure!(rest == 0, "{rest} blocks of the recipe were not run");
        Ok(())
    }
}

/// A block that runs.
#[derive(Debug)]
pub struct Step {
    child: Child,
    commands: String,
    directory: PathBuf,
}

impl Step {
    /// Whether it still runs.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end; what it wrote to standard output.
    ///
    /// # Errors
    /// When it fails, or does not end within `limit`: then it is killed.
    pub fn end(mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        while self.runs()? {
            if Instant::now() >= deadline {
                bail!("still runs after {limit:?}:\n{}", self.commands);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let status = self.child.wait()?;
        let read = |name: &str| fs::read_to_string(self.directory.join(name));
        ensure!(
            status.success(),
            "{status}:\n{}{}",
            self.commands,
            read(".errors")?
        );
        Ok(read(".output")?)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        // The shell has one child at a time, which ends when lbd does.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_under_their_heading() {
        let text = "# T\n\n## One\nwords\n```sh\na\n\nb\n```\n### Sub\n```yaml f.yaml\nx: 1\n```\n## Two\n```sh\nc\n```\n```sh a,b\nd\n```\n";
        let sections = sections(text).unwrap();
        let one = vec![
            Block::Shell("a\n\nb\n".into()),
            Block::File("f.yaml".into(), "x: 1\n".into()),
        ];
        assert_eq!(sections["One"], one);
        let on = Block::On(vec!["a".into(), "b".into()], "d\n".into());
        assert_eq!(sections["Two"], vec![Block::Shell("c\n".into()), on]);
    }

    #[test]
    fn what_would_not_be_run_is_refused() {
        for text in [
            "## One\n```sh\na\n",
            "```sh\na\n```\n",
            "## One\n```bash\na\n```\n",
            "## One\n```yaml\na\n```\n",
        ] {
            assert!(sections(text).is_err(), "{text}");
        }
    }
}
