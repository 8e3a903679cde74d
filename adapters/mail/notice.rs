//! A notice as a mail's text and HTML. Both say the same, and neither says anything else than the
//! notice: all that may come from messages or destinations is made plain, and in HTML escaped.
//!
//! The HTML is one column of flowing text in the reader's own colours, with no pictures, scripts or
//! addresses that a mail program would fetch from.

use std::fmt::Write as _;

use xbus_core::notice::{Event, Notice, Report, human};

/// Characters of an error's line where several incidents are told.
const LINE: usize = 160;

/// What a mail says of one incident.
struct Facts {
    facts: Vec<(&'static str, String)>,
    error: String,
    commands: Vec<String>,
    links: Vec<(String, String)>,
}

fn facts(notice: &Notice, report: &Report, console: Option<&str>) -> Facts {
    let end = report.resolved_at.unwrap_or(notice.at);
    let mut facts = vec![
        ("bus", notice.bus.to_string()),
        ("route", report.route.to_string()),
        ("step", report.step.to_string()),
        ("failure", report.kind.to_string()),
        (
            "since",
            format!(
                "{} ({})",
                report.opened_at,
                human(report.opened_at.until(end))
            ),
        ),
    ];
    if let Some(at) = report.resolved_at {
        facts.push(("until", at.to_string()));
    }
    facts.push(("failures", report.count.to_string()));
    if let Some(waiting) = &report.waiting {
        facts.push(("queue", waiting.queue.to_string()));
    }
    if let Some(waits) = report.waits(notice.at) {
        facts.push(("waiting", waits));
    }
    if let Some(id) = report.message {
        facts.push(("message", id.to_string()));
    }
    if notice.event == Event::Escalated {
        facts.push(("level", notice.level.to_string()));
    }
    Facts {
        facts: facts
            .into_iter()
            .map(|(name, value)| (name, plain(&value, false)))
            .collect(),
        error: plain(&report.last_error, true),
        commands: report.commands(&notice.dir),
        links: links(report, console),
    }
}

/// Where the admin listener shows the message and the queue.
fn links(report: &Report, console: Option<&str>) -> Vec<(String, String)> {
    let Some(base) = console.map(|base| base.trim_end_matches('/')) else {
        return Vec::new();
    };
    let mut links = Vec::new();
    if let Some(id) = report.message {
        links.push((
            String::from("the message"),
            format!("{base}/api/v1/messages/{id}"),
        ));
    }
    if let Some(waiting) = &report.waiting {
        let queue = percent_encoded(&waiting.queue);
        links.push((
            String::from("the queue"),
            format!("{base}/api/v1/queues/{queue}"),
        ));
    }
    links
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// Text without control characters, and without those that turn the direction of what follows;
/// `lines`: line ends stay.
fn plain(text: &str, lines: bool) -> String {
    let text = text.replace("\r\n", "\n");
    text.chars()
        .map(|c| match c {
            '\n' if lines => '\n',
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => ' ',
            c if c.is_control() => ' ',
            c => c,
        })
        .collect::<String>()
        .trim_end()
        .to_owned()
}

/// The first line of an error, shortened.
fn first_line(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    match line.char_indices().nth(LINE) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line.to_owned(),
    }
}

/// Words before the commands.
fn to_do(notice: &Notice, commands: &[String]) -> &'static str {
    let any = |start: &str| commands.iter().any(|command| command.starts_with(start));
    match notice.event {
        Event::Resolved => "To see what it was:",
        _ if any("xbus messages resolve") => "To see it, and to say what became of it:",
        _ if any("xbus queues") => "To see it, and to try again now:",
        _ => "To see it:",
    }
}

/// What is still to be decided although later messages went through.
fn undecided(notice: &Notice, report: &Report) -> Option<&'static str> {
    (report.undecided && notice.event == Event::Resolved).then_some(
        "Later messages went through. What became of the one above is still to be decided.",
    )
}

/// The plain text of a notice.
pub(crate) fn text(notice: &Notice, console: Option<&str>) -> String {
    let mut out = format!("{}\n", plain(&notice.sentence(), false));
    match notice.incidents.as_slice() {
        [] => {}
        [one] if notice.more == 0 => {
            let told = facts(notice, one, console);
            out.push('\n');
            for (name, value) in &told.facts {
                let _ = writeln!(out, "{name:<9} {value}");
            }
            out.push_str("\nLast error:\n\n");
            for line in told.error.lines() {
                let _ = writeln!(out, "    {line}");
            }
            if let Some(words) = undecided(notice, one) {
                let _ = writeln!(out, "\n{words}");
            }
            if !told.commands.is_empty() {
                let _ = writeln!(out, "\n{}\n", to_do(notice, &told.commands));
            }
            for command in &told.commands {
                let _ = writeln!(out, "    {}", plain(command, false));
            }
            for (_, link) in &told.links {
                let _ = writeln!(out, "    {link}");
            }
        }
        several => {
            for (number, one) in several.iter().enumerate() {
                let told = facts(notice, one, console);
                let _ = writeln!(out, "\n{}. {}", number + 1, plain(&one.name(), false));
                for (name, value) in &told.facts {
                    if matches!(*name, "since" | "until" | "failures" | "waiting") {
                        let _ = writeln!(out, "   {name:<9} {value}");
                    }
                }
                let _ = writeln!(out, "   error     {}", first_line(&told.error));
                for command in &told.commands {
                    let _ = writeln!(out, "   {}", plain(command, false));
                }
            }
            if notice.more > 0 {
                let _ = writeln!(out, "\nAnd {} more.", notice.more);
            }
            let _ = writeln!(
                out,
                "\nAll that is open now:\n\n    {}",
                plain(&notice.overview(), false)
            );
        }
    }
    out
}

const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
<meta name=\"color-scheme\" content=\"light dark\">\
<meta name=\"supported-color-schemes\" content=\"light dark\">\
<style>:root{color-scheme:light dark}</style></head>\n\
<body style=\"margin:0;padding:16px;font-family:sans-serif;font-size:16px;line-height:1.4\">\n\
<div style=\"max-width:600px;margin:0 auto\">\n";
const TAIL: &str = "</div></body></html>\n";
const CODE: &str = "font-family:monospace;font-size:16px;white-space:pre-wrap;\
word-wrap:break-word;overflow-wrap:anywhere;margin:0 0 12px;padding:8px;border:1px solid #808080;border-radius:4px";

/// The HTML of a notice.
pub(crate) fn html(notice: &Notice, console: Option<&str>) -> String {
    let mut out = String::from(HEAD);
    let word = notice.event.word();
    let title = match notice.incidents.as_slice() {
        [one] if notice.more == 0 => one.name(),
        _ => notice
            .subject()
            .trim_start_matches("[xbus] ")
            .trim_start_matches(word)
            .trim()
            .to_owned(),
    };
    let _ = writeln!(
        out,
        "<p style=\"margin:0 0 4px\"><strong>{word}</strong></p>\n\
         <p style=\"margin:0 0 12px;font-size:20px;overflow-wrap:anywhere\"><strong>{}</strong></p>",
        escaped(&plain(&title, false))
    );
    paragraph(&mut out, &plain(&notice.sentence(), false));
    let several = notice.incidents.len() > 1 || notice.more > 0;
    for (number, one) in notice.incidents.iter().enumerate() {
        if several {
            let _ = writeln!(
                out,
                "<p style=\"margin:20px 0 4px;overflow-wrap:anywhere\"><strong>{}. {}</strong></p>",
                number + 1,
                escaped(&plain(&one.name(), false))
            );
        }
        incident(&mut out, notice, one, console, several);
    }
    if notice.more > 0 {
        paragraph(&mut out, &format!("And {} more.", notice.more));
    }
    if several {
        paragraph(&mut out, "All that is open now:");
        command(&mut out, &plain(&notice.overview(), false));
    }
    out.push_str(TAIL);
    out
}

fn incident(out: &mut String, notice: &Notice, one: &Report, console: Option<&str>, several: bool) {
    let told = facts(notice, one, console);
    out.push_str("<p style=\"margin:0 0 12px;overflow-wrap:anywhere\">");
    let short = |name: &str| matches!(name, "since" | "until" | "failures" | "waiting");
    let shown = told
        .facts
        .iter()
        .filter(|(name, _)| !several || short(name));
    for (name, value) in shown {
        let _ = writeln!(out, "{name}: <strong>{}</strong><br>", escaped(value));
    }
    out.push_str("</p>\n");
    paragraph(out, "Last error:");
    match several {
        true => code(out, &first_line(&told.error)),
        false => code(out, &told.error),
    }
    if let Some(words) = undecided(notice, one) {
        paragraph(out, words);
    }
    if !told.commands.is_empty() {
        if !several {
            paragraph(out, to_do(notice, &told.commands));
        }
        // Each by itself: it may take several lines of a phone.
        for one in &told.commands {
            command(out, &plain(one, false));
        }
    }
    if !told.links.is_empty() {
        let links: Vec<String> = told
            .links
            .iter()
            .map(|(name, link)| format!("<a href=\"{}\">{}</a>", escaped(link), escaped(name)))
            .collect();
        let _ = writeln!(
            out,
            "<p style=\"margin:0 0 12px\">Open {}</p>",
            links.join(" or ")
        );
    }
}

fn paragraph(out: &mut String, text: &str) {
    let _ = writeln!(out, "<p style=\"margin:0 0 12px\">{}</p>", escaped(text));
}

fn code(out: &mut String, text: &str) {
    let _ = writeln!(out, "<pre style=\"{CODE}\">{}</pre>", escaped(text));
}

/// A command, whose options are not broken at their hyphens.
fn command(out: &mut String, text: &str) {
    let words: Vec<String> = text
        .split(' ')
        .map(|word| match word.starts_with("--") {
            true => format!(
                "<span style=\"white-space:nowrap\">{}</span>",
                escaped(word)
            ),
            false => escaped(word),
        })
        .collect();
    let _ = writeln!(out, "<pre style=\"{CODE}\">{}</pre>", words.join(" "));
}

/// Text as HTML's own characters cannot be taken for it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
