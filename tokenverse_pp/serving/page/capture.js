// Runs beside the page, on the audio thread: hands the microphone's samples over in pieces of a tenth of a second.

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Float32Array(Math.round(sampleRate / 10));
    this.filled = 0;
  }

  process(inputs) {
    const channels = inputs[0];
    if (!channels.length) return true;
    for (let i = 0; i < channels[0].length; i += 1) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.piece[this.filled] = sum / channels.length;
      this.filled += 1;
      if (this.filled === this.piece.length) {
        this.port.postMessage(this.piece.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
