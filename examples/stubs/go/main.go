// Ask the model `digits` from Go.
//
//	./generate.sh && go mod tidy
//	go run . 127.0.0.1:8001 $PENSTOCK_API_KEY
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	pb "penstock.example/inference"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: infer host:port api-key")
		os.Exit(2)
	}
	digit, version, err := infer(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("it is a %d, says digits version %s\n", digit, version)
}

func infer(address, key string) (int, string, error) {
	// WithInsecure is what every grpc-go has; from 1.64 on, grpc.NewClient and credentials/insecure are its newer names.
	connection, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		return 0, "", err
	}
	defer connection.Close()
	calls, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	calls = metadata.AppendToOutgoingContext(calls, "authorization", "Bearer "+key)
	answer, err := pb.NewGRPCInferenceServiceClient(connection).ModelInfer(calls, request())
	if err != nil {
		return 0, "", err
	}
	return likeliest(answer.RawOutputContents[0]), answer.ModelVersion, nil
}

// A stroke down the middle, FP32 [1, 1, 8, 8].
func request() *pb.ModelInferRequest {
	pixels := make([]byte, 64*4)
	for row := 0; row < 8; row++ {
		binary.LittleEndian.PutUint32(pixels[(row*8+4)*4:], math.Float32bits(1))
	}
	return &pb.ModelInferRequest{
		ModelName: "digits",
		Inputs: []*pb.ModelInferRequest_InferInputTensor{
			{Name: "image", Datatype: "FP32", Shape: []int64{1, 1, 8, 8}},
		},
		RawInputContents: [][]byte{pixels},
	}
}

func likeliest(raw []byte) int {
	best, score := 0, math.Inf(-1)
	for at := 0; at+4 <= len(raw); at += 4 {
		if value := float64(math.Float32frombits(binary.LittleEndian.Uint32(raw[at:]))); value > score {
			best, score = at/4, value
		}
	}
	return best
}
