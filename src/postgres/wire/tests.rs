//! Conversations with a server whose answers are scripted.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use super::*;
use crate::{
    model::{Lsn, Password, PostgresEndpoint, TlsMode, TlsSettings},
    postgres::Error,
};

const PASSWORD: &str = "horse battery";

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], (body.len() as u32 + 4).to_be_bytes().as_slice(), body].concat()
}

fn authentication(request: u32, data: &[u8]) -> Vec<u8> {
    frame(b'R', &[request.to_be_bytes().as_slice(), data].concat())
}

fn ready() -> Vec<u8> {
    frame(b'Z', b"I")
}

/// A server that lets anybody in, takes the settings, and then says this, whatever it is asked.
fn after_log_in(answers: &[Vec<u8>]) -> Vec<u8> {
    let let_in = [authentication(0, &[]), frame(b'S', b"a\0b\0"), frame(b'K', &[0; 8]), ready()];
    let settings = [frame(b'C', b"SELECT 0\0"), ready()];
    [let_in.concat(), settings.concat(), answers.concat()].concat()
}

/// A server for one connection that sends `answers` immediately; its task gives back all that it was sent.
async fn server(answers: Vec<u8>) -> (PostgresEndpoint, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&answers).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = Vec::new();
        drop(stream.read_to_end(&mut heard).await);
        heard
    });
    let endpoint = PostgresEndpoint {
        host: "127.0.0.1".into(),
        port,
        database: "app".into(),
        username: "walt".into(),
        password: Password::new(PASSWORD),
        tls: TlsSettings { mode: TlsMode::Disable, ..TlsSettings::default() },
    };
    (endpoint, heard)
}

async fn connect(answers: Vec<u8>) -> Result<Connection, Error> {
    let (endpoint, _) = server(answers).await;
    Connection::connect(&endpoint, "walferry test", Purpose::Copy).await
}

async fn refusal(answers: Vec<u8>) -> String {
    let error = connect(answers).await.unwrap_err();
    assert!(!error.is_transient() && !format!("{error:?}").contains(PASSWORD), "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_password_in_clear_text_takes_tls() {
    let (endpoint, heard) = server(authentication(3, &[])).await;
    let error = Connection::connect(&endpoint, "walferry test", Purpose::Replication).await.unwrap_err();
    assert!(
        matches!(&error, Error::Authentication { message, .. } if message.contains("clear text")),
        "{error}"
    );
    let heard = heard.await.unwrap();
    let heard = String::from_utf8_lossy(&heard);
    assert!(heard.contains("replication\0database\0") && heard.contains("DateStyle\0ISO\0"));
    assert!(!heard.contains(PASSWORD));
}

#[tokio::test]
async fn md5_sends_a_hash() {
    let (endpoint, heard) = server([authentication(5, b"salt"), after_log_in(&[])].concat()).await;
    Connection::connect(&endpoint, "walferry test", Purpose::Copy).await.unwrap();
    let heard = heard.await.unwrap();
    assert!(heard.windows(8).any(|sent| sent == b"p\0\0\0\x28md5"));
    assert!(!heard.windows(PASSWORD.len()).any(|sent| sent == PASSWORD.as_bytes()));
}

#[tokio::test]
async fn refuses_a_server_that_does_not_prove_itself() {
    let offer = authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    let message = refusal([offer, after_log_in(&[])].concat()).await;
    assert!(message.contains("without proving"), "{message}");
    let message = refusal(authentication(10, b"SCRAM-SHA-256-PLUS\0\0")).await;
    assert!(message.contains("offers no SCRAM-SHA-256"), "{message}");
    let message = refusal(authentication(12, b"v=")).await;
    assert!(message.contains("out of order"), "{message}");
    let message = refusal(authentication(7, &[])).await;
    assert!(message.contains("method 7"), "{message}");
    let message = refusal(frame(b'E', b"SFATAL\0C28P01\0Mpassword authentication failed\0\0")).await;
    assert_eq!(message, "cannot log in as walt: password authentication failed");
}

#[tokio::test]
async fn a_server_without_tls_is_named() {
    let (mut endpoint, _) = server(b"N".to_vec()).await;
    endpoint.tls.mode = TlsMode::Require;
    let error = Connection::connect(&endpoint, "walferry test", Purpose::Copy).await.unwrap_err();
    assert!(matches!(error, Error::TlsRefused { .. }), "{error}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_query_reads_rows_and_survives_an_error() {
    let answers = [
        frame(b'N', b"SNOTICE\0Mhello\0\0"),
        frame(b'T', b"\0\0"),
        frame(b'D', b"\0\x01\0\0\0\x01x"),
        frame(b'C', b"SELECT 1\0"),
        ready(),
        frame(b'E', b"C42P01\0Mno such table\0\0"),
        ready(),
        frame(b'I', b""),
        ready(),
    ];
    let mut connection = connect(after_log_in(&answers)).await.unwrap();
    assert_eq!(connection.query("SELECT 1").await.unwrap(), [[Some("x".to_owned())]]);
    assert_eq!(connection.query("SELECT 2").await.unwrap_err().sqlstate(), Some("42P01"));
    assert!(connection.query("").await.unwrap().is_empty());
    assert!(matches!(connection.query("SELECT 3").await, Err(Error::Closed)));
    assert!(matches!(connection.query("SELECT 4").await, Err(Error::Protocol(_))));
}

#[tokio::test]
async fn a_copy_gives_rows_without_header_and_trailer() {
    let header = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".as_slice();
    let end = [frame(b'd', b"\xff\xff"), frame(b'c', b""), frame(b'C', b"COPY 2\0"), ready()].concat();
    let (first, second) = (b"\0\x01\0\0\0\x01x".as_slice(), b"\0\x01\xff\xff\xff\xff".as_slice());
    let answers = [
        frame(b'H', b"\x01\0\0"),
        frame(b'd', &[header, first].concat()),
        frame(b'd', second),
        end.clone(),
        // The header may come alone.
        frame(b'H', b"\x01\0\0"),
        frame(b'd', header),
        frame(b'd', second),
        frame(b'E', b"C57014\0Mcancelled\0\0"),
        ready(),
        frame(b'H', b"\x01\0\0"),
        frame(b'd', header),
        end,
    ];
    let mut connection = connect(after_log_in(&answers)).await.unwrap();
    let mut copy = connection.copy_out("COPY 1").await.unwrap();
    assert_eq!(copy.next().await.unwrap(), Some(first));
    assert_eq!(copy.next().await.unwrap(), Some(second));
    assert_eq!(copy.next().await.unwrap(), None);
    assert_eq!(copy.next().await.unwrap(), None);
    let mut copy = connection.copy_out("COPY 2").await.unwrap();
    assert_eq!(copy.next().await.unwrap(), Some(second));
    assert_eq!(copy.next().await.unwrap_err().sqlstate(), Some("57014"));
    let _unread = connection.copy_out("COPY 3").await.unwrap();
    assert!(matches!(connection.query("SELECT 1").await, Err(Error::Protocol(_))));
}

#[tokio::test]
async fn a_stream_ends_with_the_servers_reason() {
    let keepalive = [b"k".as_slice(), &[0, 0, 0, 0, 0, 0, 0, 9], &[0; 8], &[1]].concat();
    let data = [b"w".as_slice(), &[0; 24], b"B"].concat();
    let both = frame(b'W', b"\0\0\0");
    let start = |last: Vec<u8>| {
        let answers =
            [both.clone(), frame(b'd', &keepalive), frame(b'N', b"Mhi\0\0"), frame(b'd', &data), last];
        async move {
            let connection = connect(after_log_in(&answers)).await.unwrap();
            let (mut reader, writer) =
                connection.start_replication("s", Lsn::ZERO, &["p".into()], true).await.unwrap();
            let mut seen = Vec::new();
            loop {
                match reader.try_next() {
                    Ok(Some(ReplicationMessage::XLogData { data, .. })) => seen.push(data.to_vec()),
                    Ok(Some(ReplicationMessage::Keepalive { wal_end, reply_requested })) => {
                        assert_eq!((wal_end, reply_requested), (Lsn(9), true));
                        seen.push(b"k".to_vec());
                    }
                    Ok(Some(ReplicationMessage::TooLong { .. })) => panic!("nothing is long here"),
                    Ok(None) => match reader.fill().await {
                        Ok(read) => assert_ne!(read, 0),
                        Err(error) => return (seen, error, writer),
                    },
                    Err(error) => return (seen, error, writer),
                }
            }
        }
    };
    let expected = [b"k".to_vec(), b"B".to_vec()];
    let (seen, error, writer) = start(frame(b'E', b"C57P01\0Mgoing down\0\0")).await;
    assert_eq!(seen, expected);
    assert!(error.is_transient() && error.sqlstate() == Some("57P01"), "{error}");
    drop(writer);
    let (seen, error, _) = start(frame(b'c', b"")).await;
    assert_eq!(seen, expected);
    assert!(matches!(error, Error::Closed), "{error}");
    assert!(matches!(start(vec![]).await.1, Error::Closed));
}

#[tokio::test]
async fn no_answer_is_waited_for_without_limit() {
    let header = frame(b'd', b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    let silent = |answers: Vec<Vec<u8>>| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut endpoint = server(Vec::new()).await.0;
        endpoint.port = listener.local_addr().unwrap().port();
        // It stays connected and says no more.
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&after_log_in(&answers)).await.unwrap();
            std::future::pending::<()>().await;
        });
        let connection = Connection::connect(&endpoint, "walferry test", Purpose::Copy).await.unwrap();
        // From here on time advances immediately when nothing else happens.
        tokio::time::pause();
        connection
    };
    let late = |error: &Error| matches!(error, Error::NoAnswer { .. }) && error.is_transient();
    let error = silent(vec![frame(b'T', b"\0\0")]).await.query("SELECT 1").await.unwrap_err();
    assert!(late(&error), "{error}");
    tokio::time::resume();
    let mut connection = silent(vec![frame(b'H', b"\x01\0\0"), header]).await;
    let error = connection.copy_out("COPY").await.unwrap().next().await.unwrap_err();
    assert!(late(&error), "{error}");
    tokio::time::resume();
    let connection = silent(vec![frame(b'W', b"\0\0\0")]).await;
    let (mut reader, _writer) =
        connection.start_replication("s", Lsn::ZERO, &["p".to_owned()], true).await.unwrap();
    assert!(reader.try_next().unwrap().is_none());
    let error = reader.fill().await.unwrap_err();
    assert!(late(&error), "{error}");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let row = frame(b'D', &[[0, 1, 0, 15, 0, 0].as_slice(), &vec![b'x'; 15 << 16]].concat());
    let error = connect(after_log_in(&vec![row; 20])).await.unwrap().query("SELECT 1").await.unwrap_err();
    assert!(error.to_string().contains("does not end"), "{error}");
}
