use axum::extract::ConnectInfo;
use axum::routing::get;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;

use super::*;
use crate::net::identity::Role;
use crate::net::testing::TestCluster;
use crate::net::tls::Expect;

const REQUEST: &[u8] = b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

fn router() -> Router {
    let who = |ConnectInfo(peer): ConnectInfo<AdminPeer>| async move {
        peer.identity.map_or("nobody".to_owned(), |id| id.role.to_string())
    };
    Router::new().route("/who", get(who))
}

async fn serve(cluster: &TestCluster, transport: AdminTransport) -> AdminServer {
    let identity = cluster.identity(Role::Coordinator);
    AdminServer::serve("127.0.0.1:0".parse().unwrap(), transport, &identity, router()).await.unwrap()
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<String> {
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn ask_tls(addr: SocketAddr, config: rustls::ClientConfig) -> io::Result<String> {
    let name = ServerName::try_from("coordinator.evenkeel").unwrap();
    let tcp = TcpStream::connect(addr).await?;
    ask(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?).await
}

#[tokio::test]
async fn plain_on_loopback() {
    let server = serve(&TestCluster::live(1), AdminTransport::Auto).await;
    assert!(server.url().starts_with("http://127.0.0.1:"));
    let answer = ask(TcpStream::connect(server.local_addr()).await.unwrap()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("nobody"), "{answer}");
    server.stop(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn plain_elsewhere_is_refused() {
    let identity = TestCluster::live(1).identity(Role::Coordinator);
    let addr: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let error = AdminServer::serve(addr, AdminTransport::Plain, &identity, router()).await.err().unwrap();
    assert!(matches!(error, ServeAdminError::PlainNotLoopback(_)), "{error}");
}

#[tokio::test]
async fn tls_knows_members_and_joiners() {
    let cluster = TestCluster::live(1);
    let server = serve(&cluster, AdminTransport::Tls).await;
    let addr = server.local_addr();
    let operator = tls::admin_client(&cluster.identity(Role::Operator), Expect::Coordinator).unwrap();
    let answer = ask_tls(addr, operator).await.unwrap();
    assert!(answer.ends_with("operator"), "{answer}");
    let joiner = tls::joining_client(cluster.ca.fingerprint()).unwrap();
    let answer = ask_tls(addr, joiner).await.unwrap();
    assert!(answer.ends_with("nobody"), "{answer}");
    assert!(ask_tls(addr, tls::joining_client([0; 32]).unwrap()).await.is_err(), "another CA than the token names");
    let stranger = tls::admin_client(&TestCluster::live(2).identity(Role::Operator), Expect::Coordinator).unwrap();
    assert!(ask_tls(addr, stranger).await.is_err());
}

#[tokio::test]
async fn plain_http_at_a_tls_address_gets_a_clear_answer() {
    let server = serve(&TestCluster::live(1), AdminTransport::Tls).await;
    let answer = ask(TcpStream::connect(server.local_addr()).await.unwrap()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("https://"), "{answer}");
}
