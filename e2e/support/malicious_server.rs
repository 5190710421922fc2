//! A server that is the real one until it is asked for a certain thing, and hostile from then on.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

/// What is sent once the words were heard.
#[derive(Clone, Debug)]
pub struct Attack {
    /// Sent once.
    pub first: Vec<u8>,
    /// Sent again and again as long as the client takes it; empty for silence.
    pub then: Vec<u8>,
}

impl Attack {
    /// `first`, then silence on an open connection.
    pub fn once(first: impl Into<Vec<u8>>) -> Attack {
        Attack { first: first.into(), then: Vec::new() }
    }

    /// `first`, then `then` without end.
    pub fn endless(first: impl Into<Vec<u8>>, then: impl Into<Vec<u8>>) -> Attack {
        Attack { first: first.into(), then: then.into() }
    }
}

/// Forwards connections to a port of this machine, and attacks each whose client says `words`; empty: at once.
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

    /// Bytes that clients have taken of what is sent without end.
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
            // The real server's answers so far go first.
            let _ = server.shutdown(Shutdown::Both);
            let _ = answers.join();
            let _ = client.write_all(&attack.first);
            while !attack.then.is_empty() && client.write_all(&attack.then).is_ok() {
                sent.fetch_add(attack.then.len(), SeqCst);
            }
            // What the client says is read, so that it is never stopped by it.
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
