#!/bin/bash
# Written by tools/serving_kit.py: succeeds if the stable version of each model answers.
#
#     bash ready.sh [port of REST]
#
# Runs inside the container, which has no curl. The status endpoint answers 200 for a version in
# any state, so the state itself is looked for.
port=${1:-8501}
for version in axion_model_i/versions/2 axion_model_ii/versions/2 axion_model_iii/versions/2 axion_physical_euclid/versions/2 axion_physical_hst/versions/2; do
    exec 3<>"/dev/tcp/127.0.0.1/$port" || exit 1
    printf 'GET /v1/models/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$version" >&3
    if ! grep -q '"AVAILABLE"' <&3; then
        echo "$version is not available" >&2
        exit 1
    fi
    exec 3>&-
done
