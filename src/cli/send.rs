//! `xbus send`: hands a message to a route of the running bus and shows what happened.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde_json::Value;

use super::client::{Answer, Common, encode};
use super::output::{self, Failure, cell};

/// Hand a message to a route of the running bus and show what happened
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  xbus send orders order.xml                           the content type comes from the extension
  xbus send orders order.xml --header customer=C42     with a message header
  echo '{\"name\": \"Ada\"}' | xbus send hello --header content-type=application/json
  xbus send orders order.xml --json                    the whole answer, for programs

The route's reply goes to standard output, the message's id and status to standard error.
Exit codes: 0 delivered, accepted or filtered, 1 a fault or no such route, 2 wrong use, 3 no bus.")]
pub struct Args {
    /// The route's name
    route: String,
    /// The message's content; standard input when left out or '-'
    file: Option<PathBuf>,
    /// A header of the message; can be given several times
    #[arg(long = "header", short = 'H', value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The correlation id that the message carries
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    #[command(flatten)]
    common: Common,
}

fn header(text: &str) -> Result<(String, String), String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(String::from("write NAME=VALUE, such as customer=C42"));
    };
    if name.trim().is_empty() {
        return Err(String::from("the name is missing: write NAME=VALUE"));
    }
    if text.chars().any(char::is_control) {
        return Err(String::from("control characters cannot stand in a header"));
    }
    Ok((name.trim().to_owned(), value.to_owned()))
}

/// Runs the command.
pub async fn run(args: Args) -> ExitCode {
    let json = args.common.json;
    output::finish(execute(args).await, json)
}

async fn execute(args: Args) -> Result<(), Failure> {
    let client = args.common.client()?;
    let headers = http_headers(&args)?;
    let headers: Vec<(&str, HeaderValue)> = headers.iter().map(|(n, v)| (*n, v.clone())).collect();
    let body = content(args.file.as_deref())?;
    let path = format!("/api/v1/routes/{}/send", encode(&args.route));
    let answer = client.run(&path, &headers, body).await?;
    tell(&args.common, answer)
}

fn content(file: Option<&Path>) -> Result<Bytes, Failure> {
    let (read, name) = match file.filter(|file| *file != Path::new("-")) {
        Some(file) => (std::fs::read(file), file.display().to_string()),
        None => {
            if std::io::stdin().is_terminal() {
                output::note("reading the message from the terminal; Ctrl-D ends it");
            }
            let mut all = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut all).map(|_| all);
            (read, String::from("standard input"))
        }
    };
    read.map(Bytes::from)
        .map_err(|error| Failure::wrong_use(format!("{name} cannot be read: {error}")))
}

/// The message's headers as the API takes them.
fn http_headers(args: &Args) -> Result<Vec<(&'static str, HeaderValue)>, Failure> {
    let value = |text: &str| {
        HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
            Failure::wrong_use(format!(
                "'{}' cannot stand in a header",
                output::printable(text)
            ))
        })
    };
    let mut all = Vec::new();
    let mut content_type = args.file.as_deref().and_then(media_type).map(str::to_owned);
    for (name, text) in &args.headers {
        if name.eq_ignore_ascii_case("content-type") {
            content_type = Some(text.clone());
        } else {
            all.push(("x-xbus-header", value(&format!("{name}={text}"))?));
        }
    }
    if let Some(content_type) = content_type {
        all.push(("content-type", value(&content_type)?));
    }
    if let Some(id) = &args.correlation {
        all.push(("x-correlation-id", value(id)?));
    }
    Ok(all)
}

/// The media type that a file's extension stands for.
fn media_type(file: &Path) -> Option<&'static str> {
    let extension = file.extension()?.to_str()?.to_ascii_lowercase();
    Some(match extension.as_str() {
        "xml" | "xsd" | "xsl" | "xslt" | "wsdl" => "application/xml",
        "json" => "application/json",
        "csv" => "text/csv",
        "txt" | "log" => "text/plain",
        "html" | "htm" => "text/html",
        "yaml" | "yml" => "application/yaml",
        "edi" | "edifact" => "application/edifact",
        "hl7" => "application/hl7-v2",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        _ => return None,
    })
}

/// Shows what a route said to a message: the reply to standard output, the rest to standard error.
pub(super) fn tell(common: &Common, answer: Answer) -> Result<(), Failure> {
    let body = &answer.body;
    if !body["fault"].is_object() {
        let body = Answer {
            status: answer.status,
            body: answer.body,
        }
        .ok()?;
        if common.json {
            output::print_json(&body);
            return Ok(());
        }
        output::note(&format!("{}  {}", cell(&body["id"]), cell(&body["status"])));
        output::print_bytes(&reply(&body["reply"]));
        return Ok(());
    }
    if common.json {
        output::print_json(body);
        return Err(Failure::told());
    }
    Err(fault(common, body, answer.status))
}

/// The reply's body as bytes, with a line end where it is text without one.
fn reply(reply: &Value) -> Vec<u8> {
    let Some(text) = reply["body"].as_str() else {
        return Vec::new();
    };
    if reply["encoding"] == "base64" {
        let decoded = base64::engine::general_purpose::STANDARD.decode(text);
        return decoded.unwrap_or_default();
    }
    let mut bytes = text.as_bytes().to_vec();
    if !bytes.is_empty() && !text.ends_with('\n') && std::io::stdout().is_terminal() {
        bytes.push(b'\n');
    }
    bytes
}

fn fault(common: &Common, body: &Value, status: StatusCode) -> Failure {
    let fault = &body["fault"];
    let place = match fault["step"].as_str() {
        Some(step) => format!(" in step '{step}'"),
        None => String::new(),
    };
    let id = cell(&body["id"]);
    let mut message = format!(
        "message {id} failed{place}: {}: {}",
        cell(&fault["code"]),
        cell(&fault["reason"])
    );
    if status == StatusCode::GATEWAY_TIMEOUT {
        message.push_str(" (its outcome may be unknown)");
    }
    if let Some(detail) = fault["detail"].as_str() {
        output::note(output::printable_lines(detail).trim_end());
    }
    Failure::failed(message).help(common.command(&format!("messages show {id}")))
}

#[cfg(test)]
mod tests {
    use super::super::parse as read;
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        read(line)
    }
    use serde_json::json;

    fn headers(line: &str) -> Vec<String> {
        let all = http_headers(&parse(line).unwrap()).unwrap();
        let text = |value: HeaderValue| String::from_utf8(value.as_bytes().to_vec()).unwrap();
        all.into_iter()
            .map(|(name, value)| format!("{name}: {}", text(value)))
            .collect()
    }

    #[test]
    fn arguments_become_headers() {
        assert_eq!(
            headers("send orders a/order.XML --header kunde=Müller=x -H b= --correlation c"),
            [
                "x-xbus-header: kunde=Müller=x",
                "x-xbus-header: b=",
                "content-type: application/xml",
                "x-correlation-id: c"
            ]
        );
        assert_eq!(
            headers("send orders order.xml --header Content-Type=text/xml"),
            ["content-type: text/xml"],
            "what is said goes before what is guessed"
        );
        assert!(headers("send orders").is_empty());
        assert!(headers("send orders -").is_empty());
        for wrong in [
            "send",
            "send orders a b",
            "send orders --header a",
            "send orders --header =a",
            "send orders -H a=\u{1b}",
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn a_fault_is_exit_code_1_with_where_and_why() {
        let answer = |body| Answer {
            status: StatusCode::BAD_GATEWAY,
            body,
        };
        let common = Common {
            dir: ".".into(),
            json: false,
        };
        let body = json!({ "id": "A", "fault": { "code": "destination", "reason": "failed", "step": "erp", "detail": null } });
        let failure = tell(&common, answer(body)).unwrap_err();
        assert_eq!(failure.code, output::FAILED);
        assert_eq!(
            failure.message,
            "message A failed in step 'erp': destination: failed"
        );
        assert_eq!(failure.help.as_deref(), Some("xbus messages show A"));
        let unknown = Answer {
            status: StatusCode::NOT_FOUND,
            body: json!({ "error": "there is no route 'x'" }),
        };
        assert_eq!(tell(&common, unknown).unwrap_err().code, output::FAILED);
    }

    #[test]
    fn binary_replies_come_out_as_bytes() {
        let binary = json!({ "encoding": "base64", "body": "/wA=" });
        assert_eq!(reply(&binary), [0xff, 0]);
        assert_eq!(reply(&json!(null)), b"");
    }
}
