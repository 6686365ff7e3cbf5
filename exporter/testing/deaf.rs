//! A port whose SYNs the kernel drops: where somebody listens who takes nobody in.

use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

/// Connecting to it gets no answer, not even a refusal, for as long as it lives.
pub(crate) struct Deaf {
    pub(crate) endpoint: String,
    _listener: Socket,
    /// The one connection that a backlog of 0 has room for.
    _first: TcpStream,
}

impl Deaf {
    pub(crate) fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let first = TcpStream::connect(address).unwrap();
        Self { endpoint: format!("http://{address}"), _listener: listener, _first: first }
    }
}
