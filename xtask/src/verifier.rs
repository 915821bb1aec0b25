//! The verifier's work on each program and kernel, out of what test `program_budget` prints, in one table.

use std::collections::{BTreeMap, BTreeSet};

/// Instructions by program and kernel.
#[derive(Default)]
pub struct Work {
    instructions: BTreeMap<(String, String), u32>,
    budget: Option<u32>,
}

impl Work {
    /// Takes a line such as `verified instructions: guideway 38197 of 400000 on 6.18.44`, wherever it starts; any other
    /// is left alone.
    pub fn note(&mut self, line: &str) {
        let Some((_, rest)) = line.split_once("verified instructions: ") else {
            return;
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        if let [program, count, "of", budget, "on", kernel] = words[..]
            && let (Ok(count), Ok(budget)) = (count.parse(), budget.parse())
        {
            let key = (program.to_owned(), kernel.to_owned());
            self.instructions.insert(key, count);
            self.budget = Some(budget);
        }
    }

    /// The table, a line for each program; nothing if there was no line.
    pub fn table(&self) -> Vec<String> {
        let Some(budget) = self.budget else {
            return vec![];
        };
        let kernels: BTreeSet<&String> =
            self.instructions.keys().map(|(_, kernel)| kernel).collect();
        let programs: BTreeSet<&String> = self
            .instructions
            .keys()
            .map(|(program, _)| program)
            .collect();
        let row = |first: &str, cell: &dyn Fn(&String) -> String| {
            let cells: String = kernels
                .iter()
                .map(|kernel| format!("{:>24}", cell(kernel)))
                .collect();
            format!("{first:<12}{cells}")
        };
        let mut lines = vec![
            format!("instructions that the verifier went through, budget {budget}:"),
            row("", &|kernel| kernel.clone()),
        ];
        lines.extend(programs.iter().map(|program| {
            row(program, &|kernel| {
                let count = self.instructions.get(&((*program).clone(), kernel.clone()));
                count.map_or_else(|| "-".into(), u32::to_string)
            })
        }));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::Work;

    #[test]
    fn lines_of_guests_and_of_the_host_are_one_table() {
        let mut work = Work::default();
        assert!(work.table().is_empty());
        for line in [
            "verified instructions: guideway 38197 of 400000 on 6.18.44",
            "[6.1] verified instructions: guideway 26952 of 400000 on 6.1.0-56-amd64",
            "[6.1] verified instructions: decap 2000 of 400000 on 6.1.0-56-amd64",
            "verified instructions: none",
            "test result: ok",
        ] {
            work.note(line);
        }
        let table = work.table();
        assert!(table[0].ends_with("budget 400000:"));
        let words: Vec<Vec<&str>> = table[1..]
            .iter()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            words,
            [
                vec!["6.1.0-56-amd64", "6.18.44"],
                vec!["decap", "2000", "-"],
                vec!["guideway", "26952", "38197"],
            ]
        );
    }
}
