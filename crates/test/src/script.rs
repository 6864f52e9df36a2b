use std::{collections::VecDeque, fmt, mem, sync::Arc};

/// Which replies a server gives, and in which order.
pub(crate) struct Script<Reply, Received> {
    /// With their numbers, in this order.
    once: VecDeque<(usize, Reply)>,
    /// The number of the next reply.
    next: usize,
    /// Replies with smaller numbers were removed.
    cleared: usize,
    always: Always<Reply, Received>,
}

/// The reply to each request that has none of its own.
pub(crate) enum Always<Reply, Received> {
    Normal,
    Reply(Reply),
    By(Seen, ReplyBy<Reply, Received>),
}

/// What a function that chooses a reply knows of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Head,
    Everything,
}

/// A function that chooses a reply for a request.
pub(crate) type ReplyBy<Reply, Received> = Arc<dyn Fn(&Received) -> Reply + Send + Sync>;

/// The reply to one request.
pub(crate) enum Scripted<Reply, Received> {
    Normal,
    /// With its number.
    Once(usize, Reply),
    Always(Reply),
    /// The caller must not hold a lock when it calls this.
    By(Seen, ReplyBy<Reply, Received>),
}

impl<Reply: Clone, Received> Script<Reply, Received> {
    pub(crate) fn new() -> Self {
        Self {
            once: VecDeque::new(),
            next: 0,
            cleared: 0,
            always: Always::Normal,
        }
    }

    pub(crate) fn next_once(&mut self, reply: Reply) {
        self.once.push_back((self.next, reply));
        self.next += 1;
    }

    /// Returns what it replaces, so that the caller can drop it without holding a lock.
    pub(crate) fn always(&mut self, reply: Reply) -> Always<Reply, Received> {
        mem::replace(&mut self.always, Always::Reply(reply))
    }

    pub(crate) fn always_by(
        &mut self,
        seen: Seen,
        choose: ReplyBy<Reply, Received>,
    ) -> Always<Reply, Received> {
        mem::replace(&mut self.always, Always::By(seen, choose))
    }

    /// Takes the reply to the next request.
    pub(crate) fn take(&mut self) -> Scripted<Reply, Received> {
        if let Some((number, reply)) = self.once.pop_front() {
            return Scripted::Once(number, reply);
        }
        match &self.always {
            Always::Normal => Scripted::Normal,
            Always::Reply(reply) => Scripted::Always(reply.clone()),
            Always::By(seen, choose) => Scripted::By(*seen, Arc::clone(choose)),
        }
    }

    /// Returns a reply that did not apply to its request to its place, unless it was removed in the
    /// meantime.
    pub(crate) fn put_back(&mut self, number: usize, reply: Reply) {
        if number >= self.cleared {
            let place = self.once.partition_point(|(other, _)| *other < number);
            self.once.insert(place, (number, reply));
        }
    }

    /// Removes every reply. Returns what it removes, so that the caller can drop it without holding
    /// a lock.
    pub(crate) fn clear(&mut self) -> Self {
        let empty = Self {
            next: self.next,
            cleared: self.next,
            ..Self::new()
        };
        mem::replace(self, empty)
    }

    /// The number of replies that wait for a request.
    pub(crate) fn remaining(&self) -> usize {
        self.once.len()
    }
}

impl<Reply, Received> Scripted<Reply, Received> {
    /// Chooses the reply, if the head of the request is enough to choose it.
    pub(crate) fn with_head(self, received: &Received) -> Self {
        match self {
            Self::By(Seen::Head, choose) => Self::Always(choose(received)),
            other => other,
        }
    }
}

impl<Reply: fmt::Debug, Received> fmt::Debug for Script<Reply, Received> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let always: &dyn fmt::Debug = match &self.always {
            Always::Normal => &"the normal reply",
            Always::Reply(reply) => reply,
            Always::By(..) => &"a function",
        };
        let once: Vec<_> = self.once.iter().map(|(_, reply)| reply).collect();
        f.debug_struct("Script")
            .field("next_once", &once)
            .field("always", always)
            .finish()
    }
}
