//! A plain HTTP/1.1 client over a socket, so that tests see exactly what is sent and answered.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What came back.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// `status` of an acknowledgement, in whichever shape it came.
    #[track_caller]
    pub fn json_or_xml_status(&self) -> String {
        let text = self.text();
        if text.starts_with('{') {
            return self.json()["status"].as_str().expect("a status").to_owned();
        }
        let (_, rest) = text.split_once("status=\"").expect("a status");
        rest.split('"').next().expect("an end").to_owned()
    }

    /// The bus's id of the message.
    #[track_caller]
    pub fn id(&self) -> String {
        self.header("X-Message-Id")
            .unwrap_or_else(|| panic!("no X-Message-Id in {self:?}"))
            .to_owned()
    }
}

#[track_caller]
pub fn post(address: SocketAddr, path: &str, content_type: &str, body: &[u8]) -> Response {
    request(
        address,
        "POST",
        path,
        &[("Content-Type", content_type)],
        body,
    )
    .unwrap_or_else(|error| panic!("POST {path}: {error}"))
}

#[track_caller]
pub fn get(address: SocketAddr, path: &str) -> Response {
    request(address, "GET", path, &[], b"").unwrap_or_else(|error| panic!("GET {path}: {error}"))
}

/// One request on a connection of its own.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method != "GET" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut raw = head.into_bytes();
    raw.extend_from_slice(body);
    raw_request(address, &raw)
}

/// Sends bytes as they are and reads one answer until its end.
pub fn raw_request(address: SocketAddr, raw: &[u8]) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    // A server that answers early and closes makes the rest of the write fail; its answer counts.
    let written = stream.write_all(raw);
    match read_response(&mut stream) {
        Ok(response) => Ok(response),
        Err(error) => Err(written.err().unwrap_or(error)),
    }
}

/// Reads one answer.
pub fn read_response(stream: &mut dyn Read) -> std::io::Result<Response> {
    let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut data = Vec::new();
    let mut buffer = [0u8; 16 * 1024];
    let end = loop {
        if let Some(at) = find(&data, b"\r\n\r\n") {
            break at;
        }
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(bad("the connection ended before the answer's head"));
        }
        data.extend_from_slice(&buffer[..count]);
    };
    let head = String::from_utf8_lossy(&data[..end]).into_owned();
    let mut body = data.split_off(end + 4);
    let mut lines = head.split("\r\n");
    let status: u16 = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| bad("no status line"))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let header = |name: &str| {
        headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.clone())
    };
    if status == 100 {
        let mut rest = std::io::Cursor::new(body).chain(stream);
        return read_response(&mut rest);
    }
    if let Some(length) = header("Content-Length").and_then(|text| text.parse::<usize>().ok()) {
        while body.len() < length {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Err(bad("the connection ended within the body"));
            }
            body.extend_from_slice(&buffer[..count]);
        }
        body.truncate(length);
    } else {
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                count => body.extend_from_slice(&buffer[..count]),
            }
        }
        if header("Transfer-Encoding").is_some() {
            body = unchunk(&body).ok_or_else(|| bad("a broken chunk"))?;
        }
    }
    Ok(Response {
        status,
        headers,
        body,
    })
}

fn unchunk(mut data: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = find(data, b"\r\n")?;
        let size =
            usize::from_str_radix(std::str::from_utf8(&data[..end]).ok()?.trim(), 16).ok()?;
        data = &data[end + 2..];
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(data.get(..size)?);
        data = data.get(size + 2..)?;
    }
}

pub fn find(data: &[u8], what: &[u8]) -> Option<usize> {
    data.windows(what.len()).position(|window| window == what)
}
