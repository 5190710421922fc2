//! An HTTP gateway between a client and ClickHouse: a load balancer, and a queue that delivers requests after
//! their client has disconnected.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

/// Reads whole HTTP requests and forwards each to one server, to several, or later.
#[derive(Debug)]
pub struct Gateway {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

/// The ports that a request is sent to. The last server's answer goes to the client.
type Route = Box<dyn FnMut(&str) -> Vec<u16> + Send>;

struct State {
    route: Route,
    /// A text and how many more requests that contain it are held back.
    held_back: Option<(String, usize)>,
    kept: Vec<Vec<u8>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("held_back", &self.held_back)
            .field("kept", &self.kept.len())
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// Forwards every request to one server.
    pub fn to(target: u16) -> Gateway {
        Gateway::routed(move |_| vec![target])
    }

    /// Calls `route` for each request, with its first kilobytes as text.
    pub fn routed(route: impl FnMut(&str) -> Vec<u16> + Send + 'static) -> Gateway {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { route: Box::new(route), held_back: None, kept: Vec::new() }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(client, &state));
            }
        });
        Gateway { port, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Holds back the next `times` requests that contain this text, after URL decoding, and closes their
    /// connections.
    pub fn hold(&self, text: &str, times: usize) {
        self.state().held_back = Some((text.to_owned(), times));
    }

    /// Holds back no more requests.
    pub fn let_pass(&self) {
        self.state().held_back = None;
    }

    /// The number of requests that are held back.
    pub fn kept(&self) -> usize {
        self.state().kept.len()
    }

    /// Sends the requests that were held back, in the order of their arrival, and returns the servers'
    /// answers.
    pub fn deliver(&self) -> Vec<String> {
        let kept = std::mem::take(&mut self.state().kept);
        kept.iter()
            .map(|request| {
                let targets = (self.state().route)(&shown(request));
                let mut answers: Vec<_> =
                    targets.iter().map(|target| ask(*target, request).unwrap()).collect();
                String::from_utf8_lossy(&answers.pop().unwrap()).into_owned()
            })
            .collect()
    }
}

/// Serves one connection, which carries one request.
fn serve(mut client: TcpStream, state: &Mutex<State>) {
    let Some(request) = read_request(&mut client) else { return };
    let text = shown(&request);
    let targets = {
        let mut state = state.lock().unwrap();
        if let Some((wanted, left)) = &mut state.held_back
            && *left > 0
            && text.contains(wanted.as_str())
        {
            *left -= 1;
            state.kept.push(request);
            drop(client.shutdown(Shutdown::Both));
            return;
        }
        (state.route)(&text)
    };
    let mut answers: Vec<_> = targets.iter().map(|target| ask(*target, &request)).collect();
    if let Some(Ok(answer)) = answers.pop() {
        drop(client.write_all(&answer));
    }
    drop(client.shutdown(Shutdown::Both));
}

/// Sends a request and reads the whole answer.
fn ask(target: u16, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(("127.0.0.1", target))?;
    server.write_all(request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}

/// The first kilobytes of a request, URL-decoded.
fn shown(request: &[u8]) -> String {
    let text = String::from_utf8_lossy(request.get(..request.len().min(16 << 10)).unwrap_or_default());
    let text = text.replace('+', " ");
    let mut pieces = text.split('%');
    let mut shown = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                shown.push(char::from(code));
                shown.push_str(&piece[2..]);
            }
            None => {
                shown.push('%');
                shown.push_str(piece);
            }
        }
    }
    shown
}

/// Reads a whole request and makes it ask the server to close the connection after the answer.
fn read_request(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            break end + 4;
        }
        read_more(client, &mut bytes)?;
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    if text.contains("transfer-encoding: chunked") {
        let mut at = head;
        loop {
            let Some(line) = find(&bytes[at..], b"\r\n") else {
                read_more(client, &mut bytes)?;
                continue;
            };
            let size = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let next = at + line + 2 + size + 2;
            while bytes.len() < next {
                read_more(client, &mut bytes)?;
            }
            at = next;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = text.split("content-length: ").nth(1) {
        let length: usize = length.lines().next()?.trim().parse().ok()?;
        while bytes.len() < head + length {
            read_more(client, &mut bytes)?;
        }
    }
    let line = find(&bytes, b"\r\n")? + 2;
    bytes.splice(line..line, *b"Connection: close\r\n");
    Some(bytes)
}

fn read_more(client: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 64 << 10];
    let read = client.read(&mut buffer).ok().filter(|read| *read > 0)?;
    bytes.extend_from_slice(&buffer[..read]);
    Some(())
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
