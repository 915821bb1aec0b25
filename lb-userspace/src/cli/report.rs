//! What a change did, and what went wrong, in text and as JSON.

use crate::{
    api::protocol::{ChangeReport, ErrorBody, ErrorCode, TableChange},
    problem::Problem,
};
use lb_common::limits::SLOTS;
use serde::Serialize;
use std::{
    fmt::{self, Write},
    time::Duration,
};

/// Why a command was not done: what `lbd` said, or what it would have said had it been asked.
#[derive(Debug)]
pub(super) struct Failure {
    body: ErrorBody,
    /// The file the problems are in, if they are in one.
    file: Option<String>,
}

impl Failure {
    /// Something on this side that is no fault of `lbd`.
    pub(super) fn local(message: String) -> Self {
        ErrorBody::new(ErrorCode::Failed, message).into()
    }

    /// Something that is wrong with a file.
    pub(super) fn in_file(file: &str, body: ErrorBody) -> Self {
        Self {
            body,
            file: Some(file.into()),
        }
    }

    /// Where a problem is, as far as that is known, with a colon.
    fn place(&self, problem: &Problem) -> String {
        match (&self.file, problem.line) {
            (Some(file), Some(line)) => format!("{file}:{line}: "),
            (Some(file), None) => format!("{file}: "),
            (None, Some(line)) => format!("line {line}: "),
            (None, None) => String::new(),
        }
    }

    /// The error as the API gives it.
    pub(super) fn json(&self) -> String {
        json(&self.body).trim_end().to_owned()
    }
}

impl From<ErrorBody> for Failure {
    fn from(body: ErrorBody) -> Self {
        Self { body, file: None }
    }
}

/// `error: message`, then the problems that the message does not tell, a line each:
/// `services.yaml:12: services[0].port: ...`.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = &self.body.message;
        if let [problem] = &self.body.problems[..]
            && *message == without_line(problem)
        {
            return write!(f, "error: {}{message}", self.place(problem));
        }
        write!(f, "error: {message}")?;
        for problem in &self.body.problems {
            let text = without_line(problem);
            if !message.contains(&text) {
                write!(f, "\n  {}{text}", self.place(problem))?;
            }
        }
        Ok(())
    }
}

fn without_line(problem: &Problem) -> String {
    let problem = Problem {
        line: None,
        ..problem.clone()
    };
    problem.to_string()
}

/// Pretty JSON with a newline at the end.
pub(super) fn json<T: Serialize>(value: &T) -> String {
    // The API's types have only text for keys, so this cannot fail.
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .unwrap_or_default()
}

/// What a change did, or would do.
pub(super) fn changes(report: &ChangeReport) -> String {
    let mut text = String::new();
    for line in &report.changes {
        let sign = match line.action.as_str() {
            "add" => '+',
            "remove" => '-',
            _ => '~',
        };
        let _ = write!(text, "{sign} {} {}", line.kind, line.name);
        let _ = if line.detail.is_empty() {
            writeln!(text)
        } else {
            writeln!(text, ": {}", line.detail)
        };
    }
    for table in report.tables.iter().filter(|table| table.slots_changed > 0) {
        text += &consequences(table);
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    let revision = report.revision;
    let _ = match (report.changed, report.dry_run) {
        (true, false) => writeln!(text, "done: revision {revision}"),
        (true, true) => writeln!(
            text,
            "dry run: nothing was changed, revision {revision} stays"
        ),
        (false, _) => writeln!(text, "nothing to change: revision {revision} stays"),
    };
    text
}

/// What a change does to one service's table and flows: a block of lines.
fn consequences(table: &TableChange) -> String {
    let slots = format!(
        "{} of {} change owner ({})",
        grouped(table.slots_changed.into()),
        grouped(SLOTS.into()),
        percent(share(table.slots_changed))
    );
    let TableChange {
        service, old_flows, ..
    } = table;
    // An lbd that does not tell more is an older one.
    if old_flows.is_empty() {
        return format!("service {service}:\n  slots      {slots}\n");
    }
    let (necessary, collateral) = (
        grouped(table.necessary.into()),
        grouped(table.collateral.into()),
    );
    let new = percent(table.new_flows_basis_points);
    let ending = percent(share(table.expiring_slots.saturating_add(table.lost_slots)));
    let time = match table.seconds {
        0 => "at once".into(),
        seconds => format!(
            "at least {} until its slots are settled",
            humantime::format_duration(Duration::from_secs(seconds))
        ),
    };
    format!(
        "service {service}:\n  slots      {slots}: {necessary} necessary, {collateral} collateral\n  new flows  {new} go \
         elsewhere than before\n  old flows  {ending} have to end ({old_flows})\n  time       {time}\n"
    )
}

/// Part of all slots in 1/100 percent, rounded up as the API does it.
fn share(slots: u32) -> u32 {
    (u64::from(slots) * 10_000).div_ceil(u64::from(SLOTS)) as u32
}

/// 1/100 percent as text.
fn percent(basis_points: u32) -> String {
    format!("{}.{:02} %", basis_points / 100, basis_points % 100)
}

/// A number with a comma between groups of three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::protocol::ChangeLine;

    fn line(action: &str, kind: &str, name: &str, detail: &str) -> ChangeLine {
        ChangeLine {
            action: action.into(),
            kind: kind.into(),
            name: name.into(),
            detail: detail.into(),
        }
    }

    #[test]
    fn a_dry_run_says_everything_a_change_would_do() {
        let report = ChangeReport {
            revision: 7,
            dry_run: true,
            changed: true,
            changes: vec![
                line("add", "backend", "www/web-3", "198.51.100.13, weight 100"),
                line("change", "backend", "www/web-1", "weight 100 -> 50"),
                line("remove", "service", "old", ""),
            ],
            tables: vec![
                TableChange {
                    service: "old".into(),
                    slots_changed: SLOTS,
                    necessary: SLOTS,
                    new_flows_basis_points: 10_000,
                    lost_slots: SLOTS,
                    old_flows: "all end at once, with the service".into(),
                    ..TableChange::default()
                },
                TableChange {
                    service: "still".into(),
                    old_flows: "none is affected".into(),
                    ..TableChange::default()
                },
                TableChange {
                    service: "www".into(),
                    slots_changed: 7_107,
                    necessary: 6_554,
                    collateral: 553,
                    new_flows_basis_points: 1_085,
                    expiring_slots: 6_000,
                    lost_slots: 554,
                    old_flows: "9.16 % stay, 0.85 % end at once; the others are not touched".into(),
                    seconds: 300,
                },
            ],
            warnings: vec!["old had the only service on 192.0.2.9".into()],
        };
        let expected = "\
+ backend www/web-3: 198.51.100.13, weight 100
~ backend www/web-1: weight 100 -> 50
- service old
service old:
  slots      65,537 of 65,537 change owner (100.00 %): 65,537 necessary, 0 collateral
  new flows  100.00 % go elsewhere than before
  old flows  100.00 % have to end (all end at once, with the service)
  time       at once
service www:
  slots      7,107 of 65,537 change owner (10.85 %): 6,554 necessary, 553 collateral
  new flows  10.85 % go elsewhere than before
  old flows  10.01 % have to end (9.16 % stay, 0.85 % end at once; the others are not touched)
  time       at least 5m until its slots are settled
warning: old had the only service on 192.0.2.9
dry run: nothing was changed, revision 7 stays
";
        assert_eq!(changes(&report), expected);
    }

    #[test]
    fn an_older_lbd_tells_only_the_slots() {
        let json = r#"{"revision": 7, "dry_run": false, "changed": true, "changes": [],
            "tables": [{"service": "www", "slots_changed": 13107}], "warnings": []}"#;
        let report: ChangeReport = serde_json::from_str(json).unwrap();
        let expected = "\
service www:
  slots      13,107 of 65,537 change owner (20.00 %)
done: revision 7
";
        assert_eq!(changes(&report), expected);
    }

    #[test]
    fn problems_name_file_and_line() {
        let mut located = Problem::new("services[0].port", 70_000, "a port is 0 to 65535", "");
        located.line = Some(5);
        let whole = Problem::new(
            "",
            "",
            "the file is empty",
            "write `services: []` to remove everything",
        );
        let body = ErrorBody {
            code: ErrorCode::Invalid,
            message: "the state is not valid".into(),
            problems: vec![located, whole],
        };
        let in_file = Failure::in_file("a.yaml", body.clone()).to_string();
        assert_eq!(
            in_file,
            "error: the state is not valid\n  a.yaml:5: services[0].port: a port is 0 to 65535 (given: 70000)\n  \
             a.yaml: the file is empty; write `services: []` to remove everything"
        );
        assert!(
            Failure::from(body)
                .to_string()
                .contains("\n  line 5: services[0].port: ")
        );
    }

    #[test]
    fn what_the_message_says_is_not_said_again() {
        let problem = Problem::new("port", 70_000, "is out of range", "use 0 to 65535");
        let other = Problem::new("name", "-", "is not a name", "");
        let said = "port: is out of range (given: 70000); use 0 to 65535";
        let body = |message: &str, problems: &[&Problem]| ErrorBody {
            code: ErrorCode::Invalid,
            message: message.into(),
            problems: problems.iter().copied().cloned().collect(),
        };
        assert_eq!(
            Failure::from(body(said, &[&problem])).to_string(),
            format!("error: {said}")
        );
        let located = Problem {
            line: Some(5),
            ..problem.clone()
        };
        assert_eq!(
            Failure::in_file("a.yaml", body(said, &[&located])).to_string(),
            format!("error: a.yaml:5: {said}")
        );
        let longer = format!("{said}, and more");
        assert_eq!(
            Failure::from(body(&longer, &[&problem, &other])).to_string(),
            format!("error: {longer}\n  name: is not a name (given: -)")
        );
    }

    #[test]
    fn digits_are_grouped_by_three() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (65_537, "65,537"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
