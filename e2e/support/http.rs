//! A minimal HTTP/1.0 client: one request and one answer per connection.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// Status code and body.
pub type Answer = (u16, String);

/// Fetches `path` from 127.0.0.1.
pub fn get(port: u16, path: &str) -> io::Result<Answer> {
    exchange(port, &format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"))
}

/// Posts `body` to `path` with extra header lines (each ends in CR LF).
pub fn post(port: u16, path: &str, headers: &str, body: &str) -> io::Result<Answer> {
    let length = body.len();
    exchange(
        port,
        &format!(
            "POST {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        ),
    )
}

fn exchange(port: u16, request: &str) -> io::Result<Answer> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    connection.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok((status, body.to_owned()))
}
