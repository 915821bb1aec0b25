//! Configuration files of `deploy/` with other values: only what they tell an operator to change is changed.

use anyhow::{Context, Result, ensure};

/// A file of BIRD with other values of its `define`s.
///
/// # Errors
/// When the file does not define one of them.
pub fn with_defines(shipped: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut lines: Vec<String> = shipped.lines().map(str::to_owned).collect();
    for (name, value) in values {
        let start = format!("define {name} =");
        let line = lines.iter_mut().find(|line| line.starts_with(&start));
        *line.with_context(|| format!("the shipped file defines no {name}"))? =
            format!("{start} {value};");
    }
    Ok(lines.join("\n") + "\n")
}

/// A file whose language knows no names for values, such as FRR's, with other words in the place of these, wherever they are.
///
/// # Errors
/// When the file does not have one of them outside of comments.
pub fn with_words(shipped: &str, words: &[(&str, &str)]) -> Result<String> {
    let commands = || {
        shipped
            .lines()
            .filter(|line| !line.trim_start().starts_with('!'))
    };
    for (word, _) in words {
        let has = |line: &str| line.split(' ').any(|other| other == *word);
        ensure!(commands().any(has), "the shipped file has no {word}");
    }
    let changed = |line: &str| -> String {
        let words = line.split(' ').map(|word| {
            let found = words.iter().find(|(shipped, _)| *shipped == word);
            found.map_or(word, |(_, value)| *value)
        });
        words.collect::<Vec<&str>>().join(" ") + "\n"
    };
    Ok(commands().map(changed).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_is_changed_and_what_is_not_there_is_said() {
        let bird = with_defines("define A = 1; # one\nuse A;\n", &[("A", "2")]);
        assert_eq!(bird.unwrap(), "define A = 2;\nuse A;\n");
        assert!(with_defines("define A = 1;\n", &[("B", "2")]).is_err());
        let frr = with_words(
            "! 10.0.0.1 is it\n peer 10.0.0.1 of 10.0.0.11\n",
            &[("10.0.0.1", "10.0.0.11"), ("10.0.0.11", "x")],
        );
        assert_eq!(frr.unwrap(), " peer 10.0.0.11 of x\n");
        let in_comment = with_words("! 10.0.0.1\n", &[("10.0.0.1", "x")]);
        assert!(in_comment.is_err(), "{in_comment:?}");
    }
}
