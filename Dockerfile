# syntax=docker/dockerfile:1
# Build: the binary alone, with the lock file as it is.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package postrider \
    && cp target/release/postrider /postrider \
    && mkdir /data

# Run: glibc, CA certificates, no shell, no root. The root file system may be read-only.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /postrider /usr/local/bin/postrider
# Where the embedded store lives when there is no other; a volume there takes over this owner.
COPY --from=build --chown=65532:65532 /data /var/lib/postrider
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532
WORKDIR /var/lib/postrider
# For every command, not `serve` alone.
ENV POSTRIDER_DATA_DIR=/var/lib/postrider
EXPOSE 8080 9464
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/postrider", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/postrider"]
CMD ["serve", "--listen", "0.0.0.0:8080"]
