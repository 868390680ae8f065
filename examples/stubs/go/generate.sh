#!/bin/sh
# Go stubs of the inference protocol, into ./inference. Takes protoc and protoc-gen-go; with --go-grpc, protoc-gen-go-grpc as well
# (protoc-gen-go 1.4 and newer leave services to it).
set -eu
cd "$(dirname "$0")"
mkdir -p inference
package=penstock.example/inference
options="paths=source_relative,Minference/grpc_service.proto=$package,Minference/model_config.proto=$package"
set -- --proto_path=../../../protos inference/grpc_service.proto inference/model_config.proto
if protoc-gen-go --version >/dev/null 2>&1; then
	protoc --go_out=. --go_opt="$options" --go-grpc_out=. --go-grpc_opt="$options" "$@"
else
	protoc --go_out="plugins=grpc,$options:." "$@"
fi
