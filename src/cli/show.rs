//! Output: tables, times and sizes for people, JSON for programs.
//!
//! A provider's texts are not trusted: everything printed for people goes through [`clean`], so that
//! no run can move the cursor, colour the screen or reverse the direction of its name.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use bytesize::ByteSize;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};

use crate::api::types::RunView;
use crate::model::At;

/// The least width of the last column of a table.
const LAST_COLUMN_MIN: u16 = 24;

/// Writes a line to stdout.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes a line of JSON to stdout, exactly as it is; on a terminal with every character escaped
/// that a terminal might obey.
pub fn json(text: &str) -> io::Result<()> {
    if io::stdout().is_terminal() {
        line(&escaped(text))
    } else {
        line(text)
    }
}

/// Writes a note for people to stderr. A closed stderr is no error.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "settled: {text}");
}

/// As [`note`], only if stderr is a terminal.
pub fn aside(text: &str) {
    if io::stderr().is_terminal() {
        note(text);
    }
}

/// An untrusted text as one line without what a terminal would obey.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if commands(c) { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

/// An untrusted text as lines without what a terminal would obey.
pub fn clean_lines(text: &str) -> String {
    text.chars()
        .map(|c| {
            if commands(c) && !matches!(c, '\n' | '\t') {
                ' '
            } else {
                c
            }
        })
        .collect()
}

/// Whether a terminal obeys this character instead of showing it: controls, line separators, and
/// what reverses the direction of writing.
fn commands(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// JSON in which such characters, which can only stand in strings there, are written as `\u…`.
fn escaped(json: &str) -> String {
    json.chars()
        .fold(String::with_capacity(json.len()), |mut out, c| {
            if commands(c) && !c.is_ascii_whitespace() {
                // All of them are in the basic plane.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            } else {
                out.push(c);
            }
            out
        })
}

/// A table without lines. Everything is shown whole; the last column wraps on a narrow terminal.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.set_header(header);
    plain(&mut table, N);
    table
}

/// A table of names and values, without the values that are missing.
pub fn facts<'f>(facts: impl IntoIterator<Item = (&'f str, Option<String>)>) -> String {
    let mut table = Table::new();
    table.add_rows(
        facts
            .into_iter()
            .filter_map(|(name, value)| Some([name.to_owned(), value?])),
    );
    plain(&mut table, 2);
    table.trim_fmt()
}

fn plain(table: &mut Table, columns: usize) {
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        column.set_constraint(if index + 1 < columns {
            ColumnConstraint::ContentWidth
        } else {
            // Too wide for the terminal is better than one letter a line.
            ColumnConstraint::LowerBoundary(Width::Fixed(LAST_COLUMN_MIN))
        });
    }
}

/// The text, or a dash.
pub fn or_dash(text: Option<&str>) -> String {
    text.map(clean)
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}

/// How far a moment is from now: `12 s ago`, `in 3 min`.
pub fn when(now: At, then: At) -> String {
    if now.0.abs_diff(then.0) < 1_000 {
        return "now".to_owned();
    }
    if then <= now {
        format!("{} ago", span(now.since(then)))
    } else {
        format!("in {}", span(then.since(now)))
    }
}

/// As [`when`], of a moment in RFC 3339.
pub fn when_text(now: At, then: &str) -> String {
    moment(then).map_or_else(|| clean(then), |then| when(now, then))
}

/// As [`when_text`], or a dash.
pub fn when_or_dash(now: At, then: Option<&str>) -> String {
    then.map_or_else(|| "-".to_owned(), |then| when_text(now, then))
}

fn moment(text: &str) -> Option<At> {
    text.parse::<jiff::Timestamp>()
        .ok()
        .map(|at| At(at.as_millisecond()))
}

/// Roughly how long: one number and one unit.
pub fn span(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A number of bytes.
pub fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// The state of a run in a few words.
pub fn state(run: &RunView) -> String {
    let said = run.provider_status.as_deref().map(clean);
    let word = run.outcome.map_or("open", crate::model::Outcome::word);
    let remarks = [
        said.filter(|said| said != word),
        run.overdue.then(|| "overdue".to_owned()),
        run.held.then(|| "its end is being confirmed".to_owned()),
        (run.confirmed == Some(false)).then(|| "not confirmed".to_owned()),
    ];
    let remarks: Vec<String> = remarks.into_iter().flatten().collect();
    if remarks.is_empty() {
        word.to_owned()
    } else {
        format!("{word} ({})", remarks.join(", "))
    }
}

/// The reason and the error of a run, as far as they are known.
pub fn why(reason: Option<&str>, error: Option<&str>) -> String {
    let parts: Vec<String> = [reason, error].into_iter().flatten().map(clean).collect();
    parts.join(": ")
}

/// The beginning of a text that should not fill the screen.
pub fn short(text: &str) -> String {
    const CHARS_MAX: usize = 160;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untrusted_text_cannot_command_the_terminal() {
        assert_eq!(
            clean("\u{1b}[31mred\nline\u{9b}2J\u{202e}x\u{61c}\u{0}"),
            "[31mred line 2J x"
        );
        assert_eq!(
            clean_lines("{\n\t\"a\": \"\u{1b}]0;x\u{7}\"\r\n}"),
            "{\n\t\"a\": \" ]0;x \" \n}"
        );
        assert_eq!(clean("naïve 東京 ✓"), "naïve 東京 ✓");
    }

    #[test]
    fn escaped_json_says_the_same() {
        let json = "{\"a\":\"x\u{9b}2J\u{202e}\u{7f}ü\"}\n";
        assert_eq!(escaped(json), "{\"a\":\"x\\u009b2J\\u202e\\u007fü\"}\n");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(json), read(&escaped(json)));
    }

    #[test]
    fn moments_are_shown_from_now() {
        let now = At(1_000_000_000_000);
        let ago = |seconds: u64| when(now.plus(Duration::from_secs(seconds)), now);
        assert_eq!(
            [ago(0), ago(12), ago(119), ago(150)],
            ["now", "12 s ago", "119 s ago", "2 min ago"]
        );
        assert_eq!([ago(7_200), ago(200_000)], ["2 h ago", "2 days ago"]);
        assert_eq!(when(now, now.plus(Duration::from_secs(180))), "in 3 min");
        assert_eq!(when_text(now, &now.rfc3339()), "now");
        assert_eq!(when_text(now, "no time\u{1b}"), "no time");
    }

    #[test]
    fn tables_have_no_lines_and_show_ids_whole() {
        let id = "x".repeat(200);
        let mut table = table(["RUN", "STATE"]);
        table.add_row([id.as_str(), "open"]);
        assert_eq!(
            table.trim_fmt(),
            format!("RUN{}  STATE\n{id}  open", " ".repeat(197))
        );
    }
}
