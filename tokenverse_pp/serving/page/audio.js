// Where audio comes from: the microphone or a file, at 16 kHz, in one channel.

export const RATE = 16000;

// Listens to the microphone; calls onPiece with Float32Arrays. -> a function that ends it.
export async function microphone(onPiece) {
  if (!navigator.mediaDevices) throw new Error("This browser gives no microphone here: open the page by https or on localhost.");
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  });
  // The context resamples what the microphone gives.
  const context = new AudioContext({ sampleRate: RATE });
  const end = async () => {
    for (const track of stream.getTracks()) track.stop();
    if (context.state !== "closed") await context.close();
  };
  try {
    await context.audioWorklet.addModule("capture.js");
    const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = (event) => onPiece(event.data);
    context.createMediaStreamSource(stream).connect(capture);
    await context.resume();
  } catch (error) {
    await end();
    throw error;
  }
  return end;
}

// The samples of a file that the browser can read, its channels averaged.
export async function samplesOf(file) {
  const context = new OfflineAudioContext(1, 1, RATE); // decodes to its own rate
  let decoded;
  try {
    decoded = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name}: the browser cannot read this as audio.`);
  }
  const mono = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel += 1) {
    const samples = decoded.getChannelData(channel);
    for (let i = 0; i < mono.length; i += 1) mono[i] += samples[i] / decoded.numberOfChannels;
  }
  return mono;
}

// -1 .. 1 as 16-bit numbers, little-endian whatever the machine.
export function pcm16(samples) {
  const view = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((sample, i) => {
    view.setInt16(2 * i, Math.max(-32768, Math.min(32767, Math.round(32768 * sample))), true);
  });
  return view.buffer;
}
