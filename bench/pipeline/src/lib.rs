// SPDX-License-Identifier: Apache-2.0
//! A step of a pipeline as a wasi:http component. With NEXT set to the address of the next step it
//! passes the body on: through its own memory, where a function can look at it, or with SPLICE set
//! unseen, from stream to stream in the host. Without NEXT it is the last one: it reads the body and
//! answers with one byte, of its two ends.

use wasi::http::outgoing_handler;
use wasi::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse,
    ResponseOutparam, Scheme,
};
use wasi::io::streams::{InputStream, OutputStream, StreamError};

const STEP: u64 = 1 << 20;

struct Pipeline;

/// The first and last byte, combined.
fn read(stream: &InputStream) -> u8 {
    let (mut first, mut last) = (None, 0);
    loop {
        match stream.blocking_read(STEP) {
            Ok(bytes) => {
                if let Some(&b) = bytes.last() {
                    first.get_or_insert(bytes[0]);
                    last = b;
                }
            }
            Err(StreamError::Closed) => return first.unwrap_or(0) ^ last,
            Err(e) => panic!("{e:?}"),
        }
    }
}

/// The next piece from one to the other.
fn pass(input: &InputStream, output: &OutputStream, splice: bool) -> Result<(), StreamError> {
    if splice {
        return output.blocking_splice(input, STEP).map(|_| ());
    }
    let bytes = input.blocking_read(STEP)?;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        output.subscribe().block();
        let n = (output.check_write()? as usize).min(rest.len());
        output.write(&rest[..n])?;
        rest = &rest[n..];
    }
    output.flush()
}

/// Pass the body on, and take the next step's answer.
fn forward(next: &str, input: &InputStream, length: Option<Vec<u8>>) -> u8 {
    let headers = Fields::new();
    if let Some(length) = length {
        headers.set("content-length", &[length]).unwrap();
    }
    let request = OutgoingRequest::new(headers);
    request.set_method(&Method::Post).unwrap();
    request.set_scheme(Some(&Scheme::Http)).unwrap();
    request.set_authority(Some(next)).unwrap();
    request.set_path_with_query(Some("/")).unwrap();
    let body = request.body().unwrap();
    let response = outgoing_handler::handle(request, None).unwrap();
    let output = body.write().unwrap();
    let splice = std::env::var("SPLICE").is_ok();
    loop {
        match pass(input, &output, splice) {
            Ok(()) => {}
            Err(StreamError::Closed) => break,
            Err(e) => panic!("{e:?}"),
        }
    }
    drop(output);
    OutgoingBody::finish(body, None).unwrap();
    response.subscribe().block();
    let response = response.get().unwrap().unwrap().unwrap();
    assert_eq!(response.status(), 200);
    let body = response.consume().unwrap();
    let stream = body.stream().unwrap();
    read(&stream)
}

impl wasi::exports::http::incoming_handler::Guest for Pipeline {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let length = request.headers().get("content-length").pop();
        let body = request.consume().unwrap();
        let stream = body.stream().unwrap();
        let answer = match std::env::var("NEXT") {
            Ok(next) => forward(&next, &stream, length),
            Err(_) => read(&stream),
        };
        drop(stream);
        drop(IncomingBody::finish(body));
        let response = OutgoingResponse::new(Fields::new());
        let reply = response.body().unwrap();
        ResponseOutparam::set(out, Ok(response));
        let stream = reply.write().unwrap();
        stream.blocking_write_and_flush(&[answer]).unwrap();
        drop(stream);
        OutgoingBody::finish(reply, None).unwrap();
    }
}

wasi::http::proxy::export!(Pipeline);
