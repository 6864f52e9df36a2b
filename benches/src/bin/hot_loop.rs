//! Makes calls on one stack, so that callgrind can count their instructions: `hot_loop STACK LEAF
//! HEADERS CALLS`. The bench `budgets` runs it.

use std::{env, process::exit};

use benches::{BoxedFuture, InlinedFuture, LeafFuture, OpaqueFuture, Stacks, repeat};
use tower::BoxError;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [stack, leaf, headers, calls] = &arguments[..] else {
        eprintln!("usage: hot_loop STACK LEAF HEADERS CALLS");
        exit(2);
    };
    let (headers, calls) = (headers.parse()?, calls.parse()?);
    match leaf.as_str() {
        "inlined" => run::<InlinedFuture>(stack, headers, calls),
        "boxed" => run::<BoxedFuture>(stack, headers, calls),
        "opaque" => run::<OpaqueFuture>(stack, headers, calls),
        _ => Err(format!("no leaf is called {leaf}").into()),
    }
}

fn run<F: LeafFuture>(stack: &str, headers: usize, calls: u64) -> Result<(), BoxError> {
    let stacks = Stacks::new()?;
    match stack {
        "leaf" => repeat(&mut stacks.leaf::<F>(), headers, calls),
        "add_authorization" => repeat(&mut stacks.add_authorization::<F>(), headers, calls),
        "retry" => repeat(&mut stacks.retry::<F>(), headers, calls),
        "no_replay" => repeat(&mut stacks.no_replay::<F>(), headers, calls),
        "lookup_each_call" => repeat(&mut stacks.lookup_each_call::<F>(), headers, calls),
        "clone_body" => repeat(&mut stacks.clone_body::<F>(), headers, calls),
        _ => return Err(format!("no stack is called {stack}").into()),
    }
    Ok(())
}
