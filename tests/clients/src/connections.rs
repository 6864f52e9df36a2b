use std::sync::Arc;

use tokio::sync::watch;

/// Counts the connections of a server.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<watch::Sender<Count>>);

#[derive(Debug, Default)]
struct Count {
    accepted: usize,
    open: usize,
}

impl Connections {
    /// The number of connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.0.borrow().accepted
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.0.borrow().open
    }

    /// Waits until all connections are closed.
    pub async fn closed(&self) {
        let mut count = self.0.subscribe();
        count
            .wait_for(|count| count.open == 0)
            .await
            .expect("this handle keeps the channel open");
    }

    pub(crate) fn opened(&self) -> Open {
        self.0.send_modify(|count| {
            count.accepted += 1;
            count.open += 1;
        });
        Open(self.clone())
    }
}

/// Counts a connection as open until this is dropped.
pub(crate) struct Open(Connections);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| count.open -= 1);
    }
}
