//! A server that forwards to a real one until a client sends certain words, and attacks the client from then
//! on.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

/// The bytes that are sent after a client has sent the words.
#[derive(Clone, Debug)]
pub struct Attack {
    /// Sent once.
    pub first: Vec<u8>,
    /// Sent repeatedly as long as the client reads; empty for silence.
    pub then: Vec<u8>,
}

impl Attack {
    /// `first`, then silence on an open connection.
    pub fn once(first: impl Into<Vec<u8>>) -> Attack {
        Attack { first: first.into(), then: Vec::new() }
    }

    /// `first`, then `then` repeatedly until the client disconnects.
    pub fn endless(first: impl Into<Vec<u8>>, then: impl Into<Vec<u8>>) -> Attack {
        Attack { first: first.into(), then: then.into() }
    }
}

/// Forwards connections to a local port and attacks each client that sends `words`. With empty words the
/// attack begins with the client's first bytes.
#[derive(Debug)]
pub struct MaliciousServer {
    pub port: u16,
    sent: Arc<AtomicUsize>,
}

impl MaliciousServer {
    pub fn of(target: u16, words: &'static str, attack: Attack) -> MaliciousServer {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (attack, sent) = (Arc::new(attack), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&sent);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (attack, sent) = (Arc::clone(&attack), Arc::clone(&counted));
                thread::spawn(move || serve(client, target, words, &attack, &sent));
            }
        });
        MaliciousServer { port, sent }
    }

    /// The number of bytes of the endless part that clients have read.
    pub fn sent(&self) -> usize {
        self.sent.load(SeqCst)
    }
}

fn serve(mut client: TcpStream, target: u16, words: &str, attack: &Attack, sent: &AtomicUsize) {
    let mut server = TcpStream::connect(("127.0.0.1", target)).unwrap();
    let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let answers = thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
    let (mut heard, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    while let Ok(read @ 1..) = client.read(&mut buffer) {
        heard.extend_from_slice(&buffer[..read]);
        if words.is_empty() || heard.windows(words.len()).any(|window| window == words.as_bytes()) {
            // The attack must follow the real server's answers, not mix with them.
            let _ = server.shutdown(Shutdown::Both);
            let _ = answers.join();
            let _ = client.write_all(&attack.first);
            while !attack.then.is_empty() && client.write_all(&attack.then).is_ok() {
                sent.fetch_add(attack.then.len(), SeqCst);
            }
            // The client's writes must not block, so what it sends is read and dropped.
            while let Ok(1..) = client.read(&mut buffer) {}
            return;
        }
        let from = heard.len().saturating_sub(words.len());
        heard.drain(..from);
        if server.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}
